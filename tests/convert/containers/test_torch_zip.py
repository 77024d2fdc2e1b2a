# SPDX-License-Identifier: Apache-2.0
"""Zip archives that are cut, damaged, or none that torch writes."""

import zipfile

import pytest
import torch

from cir_jax.convert.containers import torch_archive
from cir_jax.errors import UserError
from tests.convert.containers import archives

GOOD = archives.state(archives.tensor())
FOUR = {"0": bytes(16)}
ARCHIVES = {
    "data.pkl": ((None, FOUR), r"without data\.pkl.*unpack it"),
    "byteorder": ((GOOD, FOUR, {"extra": {"byteorder": b"big"}}), r"byteorder b'big'.*save it"),
    "compressed": ((GOOD, FOUR, {"method": zipfile.ZIP_DEFLATED}), "'data.pkl' is compressed"),
    "shorter": ((GOOD, {"0": bytes(15)}), r"'a\.weight': it reaches .* holds 15; fetch"),
    "missing": ((GOOD, {"1": bytes(16)}), r"'a\.weight': there is no storage '0'"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_damaged_archives_are_refused(tmp_path, case):
    (pickle, storages, *options), match = ARCHIVES[case]
    archives.craft(tmp_path / "w.pt", pickle, storages, **(options[0] if options else {}))
    with pytest.raises(UserError, match=match):
        torch_archive.read(tmp_path / "w.pt")


@pytest.mark.parametrize("place", ["local", "central"])
def test_entries_that_are_not_where_the_list_says_are_refused(tmp_path, place):
    whole = bytearray(archives.craft(tmp_path / "w.pt", GOOD, FOUR).read_bytes())
    if place == "local":
        whole[whole.index(b"w/data/0") - 30] = 0
        match = r"is damaged at its entry 'data/0'; fetch"
    else:  # the bytes of the entry, as its record in the list has them
        record = whole.rindex(b"w/data/0") - 46
        whole[record + 20 : record + 24] = (1 << 20).to_bytes(4, "little")
        match = r"is cut: its entry 'data/0' ends at byte \d+ of \d+; fetch"
    (tmp_path / "w.pt").write_bytes(whole)
    with pytest.raises(UserError, match=match):
        torch_archive.read(tmp_path / "w.pt")


def test_a_storage_whose_name_leads_out_of_its_folder_is_refused(tmp_path):
    pickle = archives.state(archives.tensor(key=b"../0"))
    archives.craft(tmp_path / "w.pt", pickle, {"../0": bytes(16)})
    with pytest.raises(UserError, match=r"there is no storage '\.\./0'"):
        torch_archive.read(tmp_path / "w.pt")


def test_archives_of_several_folders_and_with_an_entry_twice_are_refused(tmp_path):
    path = archives.craft(tmp_path / "w.pt", GOOD, FOUR)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", GOOD)
    with pytest.raises(UserError, match=r"holds 2 folders \('other', 'w'\).*unpack"):
        torch_archive.read(path)
    archives.craft(path, GOOD, FOUR)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w/data.pkl", GOOD)
    with pytest.raises(UserError, match=r"holds 'data\.pkl' twice"):
        torch_archive.read(path)


def test_every_cut_is_refused(tmp_path):
    torch.save({"a": torch.ones(40)}, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for end in range(4, len(whole), 7):
        (tmp_path / "w.pt").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut or damaged.*fetch"):
            torch_archive.read(tmp_path / "w.pt")
