"""`make campaign`: kills, damaged files, odd lines, odd surroundings and enemies, seeded; ends with a count.

python -m campaign                  all of it
python -m campaign --only kill      one kind: kill, input, flags, surrounding, security
python -m campaign --match pull     cases whose name holds this
python -m campaign --list           names, nothing run
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "140"
warnings.filterwarnings("ignore", message=".*fork.*")

import torch  # noqa: E402

from campaign import flags, inputs, kills, surroundings  # noqa: E402
from campaign.home import make_home  # noqa: E402

KINDS = {"kill": kills, "input": inputs, "flags": flags, "surrounding": surroundings, "security": surroundings}


def main() -> int:
    reader = argparse.ArgumentParser(
        prog="campaign", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--only", choices=KINDS, action="append")
    reader.add_argument("--match", default="")
    asked = reader.parse_args()
    torch.set_num_threads(1)
    began, counts, found = time.monotonic(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="campaign-") as temporary:
        work = Path(temporary)
        home = work / "home"
        make_home(home)
        modules = dict.fromkeys(KINDS[kind] for kind in asked.only or KINDS)
        for module in modules:
            for case in module.cases(home, random.Random(asked.seed), work):
                if (asked.only and case.kind not in asked.only) or asked.match not in case.name:
                    continue
                counts[case.kind] += 1
                folder = work / "case"
                folder.mkdir()
                started = time.monotonic()
                wrong = case.run(folder)
                if wrong:
                    found[case.kind] += 1
                    print(f"{case.kind}: {case.name} ({time.monotonic() - started:.1f} s)\n    {wrong}", flush=True)
                shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {asked.seed}, {(time.monotonic() - began) / 60:.1f} minutes")
    for kind in counts:
        print(f"  {kind:12} {counts[kind]:4} tried, {found[kind]:3} found wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
