"""Fair-*: classes that fall early under attack weigh more in the next epoch, on top of any method. A plug-in.

Yue, Mou, Wang, Zhao. "Revisiting Adversarial Robustness Distillation from the Perspective of Robust Fairness",
NeurIPS 2023.

    loss  = w_y host                                        every term of the host, by the sample's class
    k_i   = number of the attack's iterates at which the student still reads x_i right, the start included
    k_c   = mean of k_i over the samples of class c
    w_c   = clip( C k_c^-beta / sum_j k_j^-beta, 5/6, 5/2 )                         beta = 2, from the next epoch on

The weights are 1 in the first epoch. They are clipped after they are normalised, so their mean is not 1: part of any
effect is that of another learning rate. Counting costs no pass, since the attack has the logits already.
Fair-ARD is `ard+fair`, Fair-RSLAD `rslad+fair`, and so on; what a host balances by its losses (MTARD) it balances by
the weighted ones, as the paper has it.

Differences from the authors' code (NISP-official/Fair-ARD, 910c8cd):
  1. theirs divides by N / C, as if all classes were equally large; ours by the samples that each class had.
  2. their Fair-MTARD trains the natural branch on the robust teacher; our host reads its natural one.
  3. theirs attacks in train mode (Fair-ARD, Fair-IAD) and never makes the second drop of the learning rate; ours has
     the host's attack and schedule.
  4. theirs uses Nesterov's momentum where the hosts do not; ours has the host's (`nesterov` = true restores it).
  5. the weights and counts are lost there when a run is resumed; ours ride in the checkpoint.
A class that the epoch did not meet keeps the weight 1. As in most of theirs, 1e-5 is added to k_c.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmard.batch import Batch, Terms
from mmard.errors import require
from mmard.memory import ByClass
from mmard.method import Method

LIGHTEST, HEAVIEST = 5 / 6, 5 / 2


class ClassWeights(ByClass):
    """A weight for each class, and how long its samples have survived in the epoch at work."""

    weight: Tensor
    survived: Tensor
    met: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__(weight=1.0, survived=0.0, met=0.0)
        self.beta = beta

    def see(self, y: Tensor, trace: list[Tensor]) -> None:
        """Count at how many iterates, logits (B, C) each, every sample is still read right."""
        self.sized(trace[0])
        k = torch.stack([(logits.argmax(1) == y) for logits in trace]).sum(0)
        self.survived.index_add_(0, y, k.to(self.survived))
        self.met.index_add_(0, y, torch.ones_like(y).to(self.met))

    def renew(self) -> None:
        """The weights of the next epoch, and counts of zero."""
        met = self.met > 0
        k = self.survived[met] / self.met[met] + 1e-5
        share = (k / k.amin()) ** -self.beta if len(k) else k  # over the smallest, so that no power overflows
        self.weight.fill_(1.0)
        self.weight[met] = (len(k) * share / share.sum()).clamp(LIGHTEST, HEAVIEST)
        self.survived.zero_()
        self.met.zero_()


def fair(host: Method, beta: float = 2.0) -> Method:
    """Class weights on top of any method that makes adversarial examples.

    Args:
        host: the method to add to; what plug-ins before this one added is weighted, what later ones add is not.
        beta: how strongly early falls weigh; 0 is the host.

    Raises:
        Refused: if the host makes no adversarial examples, or for a negative exponent.
    """
    wants = "a host that makes adversarial examples"
    require(host.inner is not None, f"fair on {host.name}", expected=wants, got="one that makes none")
    require(beta >= 0, "fair.beta", expected="at least 0", got=beta)
    if beta == 0:
        return replace(host, name=f"{host.name}+fair")
    classes = ClassWeights(beta)

    def outer(b: Batch) -> Terms:
        classes.see(b.y, b.trace)
        w = classes.weight[b.y]
        return {name: w * term for name, term in host.outer(replace(b, weight=b.weight * w)).items()}

    return replace(
        host.remembering(classes, classes.renew),
        name=f"{host.name}+fair",
        outer=outer,
        source=f"{host.source}; Fair: Yue et al., NeurIPS 2023",
        says=(host.says[0], f"w_y [{host.says[1]}], w by how long class y survives"),
        soft_labels=False,
    )
