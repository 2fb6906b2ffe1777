"""In: the name of a public data set. Out: one of its files on disk, checked where its archive publishes a checksum.

A recipe states where a set is kept, what it may be used for and how to cite it. No checksum is written here: it is
read from the archive's own record of the file, when the file is fetched. Files are kept in a cache folder.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_loaders.formats import LoadError, listed

ZENODO = "https://zenodo.org/api/records"
DANDI = "https://api.dandiarchive.org/api"
GIN = "https://gin.g-node.org"
TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A public data set: where it is kept, its licence, and how to load it.

    Parameters
    ----------
    archive : {"zenodo", "dandi", "gin", "crcns"}
        Who keeps it. From "crcns" nothing is fetched: it needs an account.
    record : str
        Its name in the archive: a record number, ID/VERSION of a dandiset, a folder of raw files.
    file : str
        Which of its files is fetched by default.
    load : tuple of (keyword, value)
        Options for `neurofuse.load`.
    """

    name: str
    what: str
    archive: Literal["zenodo", "dandi", "gin", "crcns"]
    record: str
    file: str
    page: str
    licence: str
    citation: str
    load: tuple[tuple[str, str], ...] = ()

    @property
    def checksum(self) -> str:
        """Which checksum the archive publishes."""
        return {
            "zenodo": "md5, from the Zenodo record",
            "dandi": "sha256, from the asset's DANDI metadata",
            "gin": "no checksum published",
            "crcns": "no checksum published",
        }[self.archive]


_INDY = (
    "O'Doherty JE, Cardoso MMB, Makin JG, Sabes PN (2020). Nonhuman Primate Reaching with Multichannel "
    "Sensorimotor Cortex Electrophysiology. Zenodo. https://doi.org/10.5281/zenodo.3854034 "
    "(first version: https://doi.org/10.5281/zenodo.583331)"
)
_GRASP = (
    "Brochier T, Zehl L, Hao Y, Duret M, Sprenger J, Denker M, Gruen S, Riehle A (2018). Massively parallel "
    "recordings in macaque motor cortex during an instructed delayed reach-to-grasp task. Scientific Data 5, "
    "180055. https://doi.org/10.1038/sdata.2018.55; data: https://doi.org/10.12751/g-node.f83565"
)
_HC11 = (
    "Grosmark AD, Long J, Buzsaki G (2016). Recordings from hippocampal area CA1, PRE, during and POST novel "
    "spatial learning. CRCNS.org. https://doi.org/10.6080/K0862DC5"
)
_CURSOR = (("movement", "cursor_pos"),)

RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            name="indy",
            what="random-target reaching, monkey I: sorted spikes of M1 (some sessions S1 too), cursor, fingertip",
            archive="zenodo",
            record="3854034",
            file="indy_20161005_06.mat",
            page="https://zenodo.org/records/3854034",
            licence="CC-BY-4.0",
            citation=_INDY,
            load=_CURSOR,
        ),
        Recipe(
            name="loco",
            what="random-target reaching, monkey L: sorted spikes of M1 and S1, cursor, fingertip",
            archive="zenodo",
            record="3854034",
            file="loco_20170210_03.mat",
            page="https://zenodo.org/records/3854034",
            licence="CC-BY-4.0",
            citation=_INDY,
            load=_CURSOR,
        ),
        Recipe(
            name="mc_maze",
            what="Neural Latents Benchmark: delayed reaches through mazes, 182 units of M1 and PMd, hand and cursor",
            archive="dandi",
            record="000128/0.220113.0400",
            file="sub-Jenkins/sub-Jenkins_ses-full_desc-train_behavior+ecephys.nwb",
            page="https://dandiarchive.org/dandiset/000128/0.220113.0400",
            licence="CC-BY-4.0",
            citation=(
                "Churchland M, Kaufman M. MC_Maze: macaque primary motor and dorsal premotor cortex spiking activity "
                "during delayed reaching (version 0.220113.0400). DANDI archive. "
                "https://doi.org/10.48324/dandi.000128/0.220113.0400"
            ),
            load=(("movement", "hand_vel"),),
        ),
        Recipe(
            name="mc_maze_small",
            what="Neural Latents Benchmark: another session of the same task with few trials, a quick download",
            archive="dandi",
            record="000140/0.220113.0408",
            file="sub-Jenkins/sub-Jenkins_ses-small_desc-train_behavior+ecephys.nwb",
            page="https://dandiarchive.org/dandiset/000140/0.220113.0408",
            licence="stated on its page",
            citation=(
                "Churchland M, Kaufman M. MC_Maze_Small: macaque primary motor and dorsal premotor cortex spiking "
                "activity during delayed reaching (version 0.220113.0408). DANDI archive. "
                "https://doi.org/10.48324/dandi.000140/0.220113.0408"
            ),
            load=(("movement", "hand_vel"),),
        ),
        Recipe(
            name="mc_rtt",
            what="Neural Latents Benchmark: self-paced random targets, 130 units of M1, cursor and fingertip",
            archive="dandi",
            record="000129/0.241017.1444",
            file="sub-Indy/sub-Indy_desc-train_behavior+ecephys.nwb",
            page="https://dandiarchive.org/dandiset/000129/0.241017.1444",
            licence="CC-BY-4.0",
            citation=(
                "O'Doherty J (2024). MC_RTT: macaque motor cortex spiking activity during self-paced reaching (version "
                "0.241017.1444). DANDI archive. https://doi.org/10.48324/dandi.000129/0.241017.1444"
            ),
            load=(("movement", "finger_vel"),),
        ),
        Recipe(
            name="miller-centre-out",
            what="centre-out reaching, monkey C: units of M1 and PMd, cursor",
            archive="dandi",
            record="000688/0.250122.1735",
            file="sub-C/sub-C_ses-CO-20160914_behavior+ecephys.nwb",
            page="https://dandiarchive.org/dandiset/000688/0.250122.1735",
            licence="stated on its page",
            citation=(
                "Perich MG, Miller LE, Azabou M, Dyer EL (2025). Long-term recordings of motor and premotor cortical "
                "spiking activity during reaching in monkeys (version 0.250122.1735). DANDI archive. "
                "https://doi.org/10.48324/dandi.000688/0.250122.1735"
            ),
            load=(("movement", "cursor_vel"),),
        ),
        Recipe(
            name="i140703",
            what="delayed reach to grasp, monkey N: sorted spikes and LFP (1 kHz) of 96 electrodes, grip forces",
            archive="gin",
            record="INT/multielectrode_grasp/raw/to_nix/datasets_nix",
            file="i140703-001_no_raw.nix",
            page="https://gin.g-node.org/INT/multielectrode_grasp",
            licence="CC-BY-4.0",
            citation=_GRASP,
        ),
        Recipe(
            name="l101210",
            what="delayed reach to grasp, monkey L: sorted spikes and broadband of 96 electrodes, grip forces",
            archive="gin",
            record="INT/multielectrode_grasp/raw/to_nix/datasets_nix",
            file="l101210-001.nix",
            page="https://gin.g-node.org/INT/multielectrode_grasp",
            licence="CC-BY-4.0",
            citation=_GRASP,
        ),
        Recipe(
            name="hc-11",
            what="rats on a novel track, as NWB: units and LFP (1250 Hz) of CA1, position; 9 GB a session",
            archive="dandi",
            record="000044/0.250624.0426",
            file="sub-Achilles/sub-Achilles_ses-Achilles-10252013_behavior+ecephys.nwb",
            page="https://dandiarchive.org/dandiset/000044/0.250624.0426",
            licence="stated on its page",
            citation=_HC11,
        ),
        Recipe(
            name="hc-11-crcns",
            what="the same in the laboratory's own files, from an archive that needs an account",
            archive="crcns",
            record="hc-11",
            file="",
            page="https://crcns.org/data-sets/hc/hc-11/about-hc-11",
            licence="terms of use of CRCNS.org",
            citation=_HC11,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises
    ------
    LoadError
        If there is none; the sentence lists all.
    """
    if name not in RECIPES:
        raise LoadError(f"there is no data set '{name}'; there are {listed(list(RECIPES))}.")
    return RECIPES[name]


def fetch(
    name: str, *, file: str | None = None, folder: str | Path | None = None, progress: bool = False
) -> Path:
    """Download one file of a public data set, or find it where it was put before.

    Parameters
    ----------
    name : str
        One of `RECIPES`.
    file : str, optional
        Another file of the same set, as its archive names it.
    folder : path, optional
        Where to keep it; by default the user's cache folder.
    progress : bool
        Show progress on stderr.

    Returns
    -------
    Path
        The file; `neurofuse.load(path, **dict(recipe(name).load))` reads it.

    Raises
    ------
    LoadError
        If the network, the file or its checksum fails; the sentence states which, and what to do.
    """
    import pooch

    chosen = recipe(name)
    if chosen.archive == "crcns":
        raise LoadError(
            f"'{name}' is given out to account holders only; download it by hand from {chosen.page}, then load "
            "the files."
        )
    file = file or chosen.file
    target = (pooch.os_cache("neurofuse") if folder is None else Path(folder)) / name / Path(file).name
    if target.exists():
        return target
    try:
        find = {"zenodo": _on_zenodo, "dandi": _on_dandi, "gin": _on_gin}[chosen.archive]
        url, known_hash = find(chosen, file)
        pooch.retrieve(
            url,
            known_hash=known_hash,
            fname=target.name,
            path=target.parent,
            downloader=pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT_S),
        )
    except LoadError:
        raise
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise LoadError(
            f"'{target.name}' arrived damaged (its checksum is not the published one); fetch it again."
        ) from None
    except OSError as error:
        # What `urllib` and `requests` raise are OSErrors too: with the archive's response if there was one.
        response = getattr(error, "response", None)
        status = (
            error.code
            if isinstance(error, urllib.error.HTTPError)
            else getattr(response, "status_code", None)
        )
        if status is not None:
            raise LoadError(
                f"{_host(chosen.page)} returns {status} for '{file}'; see {chosen.page} for what it holds."
            ) from None
        if getattr(error, "filename", None) is not None:
            raise LoadError(
                f"cannot write '{target}' ({error.strerror or error}); choose another --out."
            ) from None
        raise LoadError(
            f"{_host(chosen.page)} cannot be reached, so '{target.name}' was not fetched; connect to the network, or "
            f"download it by hand from {chosen.page}."
        ) from None
    return target


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        return json.loads(response.read())


def _absent(chosen: Recipe, file: str, held: list[str]) -> LoadError:
    return LoadError(
        f"the data set '{chosen.name}' has no file '{file}'; it has {listed(sorted(held), most=60)}."
    )


def _on_zenodo(chosen: Recipe, file: str) -> tuple[str, str | None]:
    """Address and checksum of a file, from the record that holds it."""
    files = {f["key"]: f for f in _json(f"{ZENODO}/{chosen.record}")["files"]}
    if file not in files:
        raise _absent(chosen, file, list(files))
    return files[file]["links"]["self"], files[file].get("checksum")


def _on_dandi(chosen: Recipe, file: str) -> tuple[str, str | None]:
    """Address and checksum of a file, from the dandiset's list and the asset's own metadata."""
    dandiset, version = chosen.record.split("/")
    subject = file.rsplit("/", 1)[0] if "/" in file else ""
    query = urllib.parse.urlencode({"path": subject, "page_size": 1000})
    listing = _json(f"{DANDI}/dandisets/{dandiset}/versions/{version}/assets/?{query}")
    assets = {a["path"]: a["asset_id"] for a in listing["results"]}
    if file not in assets:
        raise _absent(chosen, file, list(assets))
    place = f"{DANDI}/assets/{assets[file]}"
    sha256 = _json(f"{place}/").get("digest", {}).get("dandi:sha2-256")
    return f"{place}/download/", f"sha256:{sha256}" if sha256 else None


def _on_gin(chosen: Recipe, file: str) -> tuple[str, str | None]:
    return f"{GIN}/{chosen.record}/{urllib.parse.quote(file)}", None
