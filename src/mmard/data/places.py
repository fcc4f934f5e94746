"""Where a source looks for its files, and what is said when they are not there."""

from __future__ import annotations

from pathlib import Path

from mmard.errors import Refused


def places(data_dir: Path, name: str, fetchable: bool = True) -> list[Path]:
    """The folder given and the folder named after the set within it, whichever exist.

    Raises:
        Refused: if the folder given does not exist.
    """
    if not data_dir.exists():
        raise Refused(
            f"data {name!r}", expected="a folder that exists", got=str(data_dir), mend=_mend(name, data_dir, fetchable)
        )
    return [place for place in (data_dir, data_dir / name) if place.is_dir()]


def missing(name: str, data_dir: Path, forms: str, fetchable: bool = True) -> Refused:
    """The error for a folder in which none of a source's forms was found."""
    return Refused(
        f"data {name!r}",
        expected=forms,
        got=f"none of these in {data_dir} or {data_dir / name}",
        mend=_mend(name, data_dir, fetchable),
    )


def damaged(path: Path | str, expected: str, error: object) -> Refused:
    """The error for a file that does not hold what its name promises."""
    got = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Refused(str(path), expected=expected, got=got, mend="the file is damaged or cut off: fetch or copy it again")


def _mend(name: str, data_dir: Path, fetchable: bool) -> str:
    if not fetchable:
        return "point --data-dir at the folder that holds them"
    return f"get them with: mmard fetch {name} --data-dir {data_dir}"
