"""Studies and scales as declared: what is shipped can be built, equal cells are one, wrong words are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import over
from little_study import SCALE, STUDY

import mmard
from mmard.errors import Refused
from mmard.job import method_of
from mmard.methods import parameters
from mmard.settings import MACHINE, Settings
from mmard.study.cell import Site, settings_here
from mmard.study.grid import Sweep, cell_name, choose, grid_of, load_scale, load_study, names, together
from mmard.study.reading import Reading, row_name
from mmard.study.records import read
from mmard.study.rerun import cell_of

PACKAGE = Path(mmard.__file__).parent
SHIPPED = [(study, scale) for scale in names("scales") for study in load_scale(scale).order]


@over("scale", ["S", "M", "L"])
@over("study", names("studies"))
def test_every_study_can_be_done_at_every_scale(study: str, scale: str) -> None:
    at = load_scale(scale)
    assert grid_of(load_study(study, at), at).rows


@over(("study", "scale"), SHIPPED)
def test_every_cell_of_what_is_shipped_can_be_built_and_comes_after_its_teachers(study: str, scale: str) -> None:
    where = load_scale(scale)
    grid = grid_of(load_study(study, where), where)
    seen: set[str] = set()
    for name, cell in grid.cells.items():
        assert name == cell.name
        assert set(cell.teachers.values()) <= seen
        seen.add(name)
        method = method_of(cell.settings)
        assert set(method.teachers) == set(cell.settings.teachers) >= set(cell.teachers)
        resolved = Settings.resolve(cell.settings.as_config())
        assert resolved == cell.settings, "a cell is made again from its settings alone"
        host = cell.settings.host
        said = {full.split(".", 1)[1] for full in cell.settings.params if full.startswith(f"{host}.")}
        assert said == set(parameters(host)), "every parameter is said"
    students = {name for name, cell in grid.cells.items() if not cell.role}
    assert {name for row in grid.rows for name in row.cells} == students
    assert all(len(row.cells) == len(where.seeds) for row in grid.rows)


def test_every_study_is_done_at_some_scale() -> None:
    assert {study for study, _ in SHIPPED} == set(names("studies"))


def test_equal_cells_of_two_studies_are_one() -> None:
    scale = load_scale("S")
    one, other = (grid_of(load_study(name, scale), scale) for name in ("plug-and-play", "boundary"))
    assert set(other.cells) < set(one.cells)
    assert len(together([one, other])) == len(one.cells)


def test_a_default_that_is_said_and_one_that_is_not_are_one_cell() -> None:
    scale = load_scale("S")
    default = parameters("mmard")["beta"].default
    said = grid_of(load_study("ablation", scale).model_copy(update={"sweeps": (_beta(default),)}), scale)
    by_variant = {row.variant: row.cells for row in said.rows}
    assert by_variant[f"beta {default:g}"] == by_variant["+both"]
    assert by_variant["+outer"] != by_variant["+both"]


def _beta(value: float) -> Sweep:
    return Sweep(axis="beta", param="mmard.beta", values=(value,), plugin="mmard")


@pytest.mark.parametrize("at", ["S", "M", "demo"])
def test_every_record_is_of_a_cell_of_the_same_name_today(at: str) -> None:
    """A setting or a parameter that is younger than the records must be in declared/added.toml."""
    records = read(Path(__file__).parents[1] / "results" / "studies" / f"{at}.jsonl")
    for name, record in records.items():
        cell = cell_of(record)
        assert cell_name(cell.settings, cell.settings.network, cell.teachers, cell.role) == name
        assert at == "demo" or cell.settings.best_by == "robust", "as it was before it could be said"


def test_a_teacher_without_an_attack_is_chosen_by_clean_accuracy() -> None:
    scale = load_scale("C8")
    study = load_study("saturation", scale).model_copy(update={"hosts": ("akd2", "pgd_at"), "teachers": ("main",)})
    by = {cell.settings.method: cell.settings.best_by for cell in grid_of(study, scale).cells.values()}
    assert by == {
        "natural": "clean",
        "n_fgsm": "robust",
        "akd2": "robust",
        "akd2+mmard": "robust",
        "pgd_at": "robust",
        "pgd_at+mmard": "robust",
    }


@pytest.mark.parametrize("setting", sorted(MACHINE & set(Settings.model_fields)))
def test_what_belongs_to_a_machine_names_no_cell(setting: str) -> None:
    scale = load_scale("S")
    value = {"threads": 7, "save_seconds": 3.0, "attack_chunk": 5, "tensorboard": True, "on_disk": True}.get(
        setting, "x"
    )
    other = scale.model_copy(update={"every": {**scale.every, setting: value}})
    study = load_study("saturation", scale).model_copy(update={"teachers": ("main",)})
    assert set(grid_of(study, scale).cells) == set(grid_of(study, other).cells)


@pytest.mark.parametrize(("setting", "value"), [("epochs", 41), ("lr", 0.11), ("eps", 0.14), ("augment", "none")])
def test_what_changes_a_network_changes_its_name_and_those_of_its_students(setting: str, value: object) -> None:
    scale = load_scale("S")
    teachers = {**scale.teachers, "main": {**scale.teachers["main"], setting: value}}
    other = scale.model_copy(update={"teachers": teachers})
    study = load_study("saturation", scale).model_copy(update={"teachers": ("main",)})
    assert not set(grid_of(study, scale).cells) & set(grid_of(study, other).cells)


@given(st.sampled_from([2.0, 3.0, 10.0]))
def test_a_factor_divides_and_multiplies_and_of_a_share_its_odds(factor: float) -> None:
    default = float(parameters("rslad")["alpha"].default)
    low, high = (value for _, value in Sweep(axis="a", param="rslad.alpha", factor=factor, share=True).points())
    assert 0 < low < default < high < 1  # type: ignore[operator]
    odds = [float(v) / (1 - float(v)) for v in (low, default, high)]
    assert odds[1] / odds[0] == pytest.approx(factor, rel=1e-2)
    assert odds[2] / odds[1] == pytest.approx(factor, rel=1e-2)
    beta = float(parameters("trades")["beta"].default)
    found = [value for _, value in Sweep(axis="b", param="trades.beta", factor=factor).points()]
    assert found == pytest.approx([beta / factor, beta * factor], rel=1e-3)


def test_a_study_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = ["pgd_at", "rslad"]\n')
    scale = load_scale("S")
    grid = grid_of(load_study(file, scale), scale, seeds=(7,))
    assert [(row.host, row.variant, row.teacher) for row in grid.rows] == [
        ("pgd_at", "plain", ""),
        ("rslad", "plain", "main"),
    ]
    assert [cell.seed for cell in grid.cells.values() if not cell.role] == [7, 7]


def test_a_variant_is_made_of_the_hosts_that_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = ["pgd_at", "rslad"]\n'
        '[variants.plain]\n[variants."with SWA"]\nhosts = ["pgd_at"]\nsettings = {average = "swa"}\n'
    )
    scale = load_scale("S")
    grid = grid_of(load_study(file, scale), scale, seeds=(0,))
    assert [(row.host, row.variant) for row in grid.rows] == [
        ("pgd_at", "plain"),
        ("pgd_at", "with SWA"),
        ("rslad", "plain"),
    ]
    assert [grid.cells[row.cells[0]].settings.average for row in grid.rows] == ["none", "swa", "none"]
    assert [row_name(Reading(grid, {}), row) for row in grid.rows] == ["pgd_at", "pgd_at with SWA", "rslad"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('hosts = ["rslda"]', "did you mean 'rslad'"),
        ('hosts = ["rslad"]\nteachers = ["mian"]', "did you mean 'main'"),
        ('hosts = ["rslad"]\nhost = 1', "host"),
        ('hosts = ["rslad"]\n[variants.a]\nparams = {"mmard.beta" = 1.0}', "mmard.beta"),
        ('hosts = ["rslad"]\n[variants.a]\nsettings = {epoch = 3}', "did you mean 'epochs'"),
        ('hosts = ["rslad"]\n[variants.a]\nhosts = ["rsald"]', "did you mean 'rslad'"),
        ("hosts = [", "TOML"),
    ],
)
def test_a_wrong_declaration_is_refused_with_the_word_that_is_wrong(tmp_path: Path, change: str, says: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\n' + change)
    scale = load_scale("S")
    with pytest.raises(Refused, match=says.replace(".", r"\.")):
        grid_of(load_study(file, scale), scale)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a b", ".hidden", ""])
def test_a_name_that_would_lie_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'name = "{name}"\ntitle = "t"\nquestion = "q"\nreads = "benchmark"\nhosts = ["rslad"]')
    with pytest.raises(Refused, match=r"mine\.toml: name: expected .*pattern"):
        load_study(file)
    shipped = (PACKAGE / "study/declared/scales/S.toml").read_text(encoding="utf-8")
    file.write_text(shipped.replace('name = "S"', f'name = "{name}"'))
    with pytest.raises(Refused, match=r"mine\.toml: name: expected .*pattern"):
        load_scale(file)


def test_a_way_of_reading_that_is_not_known_is_refused_before_hours_of_training(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\ntitle = "t"\nquestion = "q"\nreads = "ablations"\nhosts = ["rslad"]\n')
    with pytest.raises(Refused, match=r"reads: expected .*'ablation'"):
        load_study(file)


@pytest.mark.parametrize("kind", [load_study, load_scale])
def test_an_unknown_name_is_refused_with_the_nearest(kind: object) -> None:
    with pytest.raises(Refused, match="expected one of"):
        kind("boundry" if kind is load_study else "s")  # type: ignore[operator]


def test_a_given_teacher_is_no_cell_and_its_file_lies_beside_the_data(tmp_path: Path) -> None:
    scale = load_scale("paper-cifar10")
    grid = grid_of(load_study("headline", scale), scale)
    assert not any(cell.role for cell in grid.cells.values())
    cell = next(iter(grid.cells.values()))
    settings = settings_here(cell, Site(tmp_path / "runs", data_dir=str(tmp_path)))
    assert settings.teachers == {"T": (scale.teachers["main"]["given"],)}
    assert settings.teacher_weights == {"T": str(tmp_path / scale.teachers["main"]["weights"])}


@pytest.mark.parametrize(
    ("kind", "line", "says"),
    [
        ("two", 'name = "../../x"', "two.toml: name: expected string should match pattern"),
        ("two", "reads = 3", "two.toml: reads: expected 'plug-and-play'"),
        ("two", 'hosts = ["pgd_at"', "two.toml: expected TOML"),
        ("two", '[[sweeps]]\naxis = "a"\nparam = "beta"', r"two.toml: sweeps.0.param"),
        ("two", 'students = ["nope"]', "network 'nope'"),
        ("little", 'name = "../x"', "little.toml: name"),
        ("little", "seeds = []", "little.toml: seeds"),
        ("little", 'seeds = "all"', "little.toml: seeds"),
        ("little", "attack_images = -1", "little.toml: attack_images: expected at least 0, got -1"),
        ("little", 'attacks = ["pgd-nope"]', "pgd-nope"),
        ("little", 'attacks = ["fab-t"]', "attacks of scale little: expected one that hands out its examples"),
        ("little", "student", "little.toml: expected TOML"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_in_one_line(tmp_path: Path, kind: str, line: str, says: str) -> None:
    key = line.split(" = ")[0].split("\n")[-1]
    texts = {"two": STUDY, "little": SCALE}
    kept = [each for each in texts[kind].splitlines() if not each.startswith(f"{key} =")]
    texts[kind] = "\n".join([*kept, line] if line.startswith("[[") else [line, *kept])
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(Refused, match=says) as refused:
        choose([tmp_path / "two.toml"], tmp_path / "little.toml")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value).replace(str(tmp_path), "")) < 500
