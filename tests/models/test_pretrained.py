"""The table of published weights: true to open_clip, timm and the recipes; what is here, whole, fetched."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from entrep_cli.errors import EntrepError, UsageError, WeightsError
from entrep_cli.models import pretrained
from entrep_cli.models.pretrained import HubFile, PretrainedWeights, fetch_commands, find_weights, pretrained_weights, weights_path
from entrep_cli.models.pretrained_fetch import check_weights, fetch_file
from entrep_cli.recipes.recipe import recipe_names
from tests.tiny import CLIP, cache_files

RECIPES = Path(pretrained.__file__).parents[1] / "recipes"
CONTENT = "weights"
FILE = HubFile("owner/model", "a.bin", ("b.bin",), len(CONTENT), hashlib.sha256(CONTENT.encode()).hexdigest())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of an empty hub cache; asking a network is an error."""

    def refused(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", refused)
    return tmp_path / "hub"


# ---------------------------------------------------------------- the table


def test_names_files_and_hashes_are_of_their_form():
    names = [weights.name for weights in pretrained_weights()]
    assert len(set(names)) == len(names)
    for weights in pretrained_weights():
        assert re.fullmatch(r"[a-z0-9-]+", weights.name) and weights.url.startswith("https://") and weights.size > 1e6
        assert weights.commercial == ("NC" not in weights.licence) and (weights.load or "not loaded by entrep" in weights.note)
        assert weights.revision is None or re.fullmatch(r"[0-9a-f]{40}", weights.revision)
        for file in weights.files:
            assert file.repository.count("/") <= 1 and file.name not in file.instead
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


def test_the_table_agrees_with_open_clip_and_timm():
    """Repository, file and licence are those that the libraries, and so the models, look for."""
    import entrep_cli.torchvision_ops  # noqa: F401 - before timm imports torchvision

    import open_clip
    import timm

    from entrep_cli.models.clip import _HUB_VOCABULARIES, _HUB_WEIGHTS

    for weights in filter(lambda weights: weights.load, pretrained_weights()):
        how, first = weights.load, weights.files[0]
        if "timm" in how:
            config = timm.get_pretrained_cfg(how["timm"])
            assert timm.is_model(how["timm"].split(".")[0])
            if how.get("hub", True):
                assert (config.hf_hub_id, config.license) == (weights.repository, weights.licence.lower()), weights.name
                assert (first.name, *first.instead) == ("model.safetensors", "pytorch_model.bin")
            continue
        assert {first.name, *first.instead} == set(_HUB_WEIGHTS), weights.name
        others = {(file.repository, file.name) for file in weights.files[1:]}
        if how["clip"].startswith("hf-hub:"):
            assert how["clip"] == f"hf-hub:{weights.repository}" and (weights.repository, "open_clip_config.json") in others
            continue
        assert open_clip.get_pretrained_cfg(how["clip"], how["tag"])["hf_hub"] == f"{weights.repository}/"
        text = open_clip.get_model_config(how["clip"])["text_cfg"]
        if name := text.get("hf_tokenizer_name"):
            assert {(name, "config.json"), (name, "tokenizer_config.json")} <= others
            assert any(file.repository == name and file.name in _HUB_VOCABULARIES for file in weights.files)


def test_weights_are_named_as_in_the_table(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTREP_RUNS", str(tmp_path / "runs"))
    assert weights_path("some/file.pth") == Path("some/file.pth")
    with pytest.raises(WeightsError, match="'mobilenetv2' are not on this machine") as caught:
        weights_path("mobilenetv2")
    assert "`entrep weights fetch mobilenetv2`" in caught.value.hint
    folder = cache_files(hub, "timm/mobilenetv2_100.ra_in1k", {"model.safetensors": CONTENT})
    assert weights_path("mobilenetv2") == folder / "model.safetensors"
    (tmp_path / "mobilenetv2").write_text(CONTENT)  # a file of that name goes before
    assert weights_path("mobilenetv2") == Path("mobilenetv2")
    named = [tomllib.loads((RECIPES / f"{name}.toml").read_text("utf-8")).get("backbone", {}).get("weights") for name in recipe_names()]
    assert set(named) - {None, "none", "hub"} <= {weights.name for weights in pretrained_weights()} and "mobilenetv2" in named


def test_every_weight_of_the_hub_that_a_recipe_names_is_in_the_table():
    from entrep_cli.models.backbones import BackboneSettings
    from entrep_cli.models.clip import ClipSettings

    asked = {(BackboneSettings().name, None), (ClipSettings().name, ClipSettings().tag)}

    def look(table: dict) -> None:
        if table.get("weights") == "hub":
            asked.add((table["name"], table.get("tag")))
        for value in table.values():
            if isinstance(value, dict):
                look(value)

    for name in recipe_names():
        look(tomllib.loads((RECIPES / f"{name}.toml").read_text("utf-8")))
    known = {(w.load.get("clip") or w.load["timm"], w.load.get("tag")) for w in pretrained_weights() if w.load}
    assert len(asked) == 4 and asked <= known


def test_the_table_needs_no_torch():
    code = "import sys, entrep_cli.models.pretrained as p; p.pretrained_weights(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match="No weights") as caught:
        find_weights("biomed-clip")
    assert "biomedclip" in caught.value.hint


def test_mends_name_our_command_and_files_that_exist():
    assert fetch_commands("owner/model", ["x.bin"]) == "`hf download owner/model x.bin`"
    # BiomedCLIP has no .safetensors, its text tower no tokenizer.json: the table knows.
    found = fetch_commands("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", ["open_clip_model.safetensors"])
    assert found.startswith("`entrep weights fetch biomedclip` or `hf download") and ".safetensors" not in found
    assert "vocab.txt" in fetch_commands("microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", ["tokenizer.json"])
    assert "surgenet-dinov2-b`" in fetch_commands("rlpddejong/SurgeNetXL_DINOv1-v3", ["DINOv2_ViTb14_size336_SurgeNetXL.pth"])


# ---------------------------------------------------------------- here, and whole


def entry(*files: HubFile, **more) -> PretrainedWeights:
    return PretrainedWeights("w", "W", "tests", "owner/model", "MIT", True, "https://example.org", files, **more)


def test_state_and_faults(hub):
    other = HubFile("owner/words", "vocab.txt")
    weights = entry(FILE, other)
    assert weights.state == "no" and len(check_weights(weights)) == 2
    folder = cache_files(hub, "owner/model", {"a.bin": CONTENT})
    assert weights.state == "incomplete" and weights.missing == (other,)
    cache_files(hub, "owner/words", {"vocab.txt": "a"})
    assert weights.state == "here" and check_weights(weights) == []
    for content, fault in (("other", "5 bytes"), ("wXights", "SHA-256"), ("", "empty")):
        (folder / "a.bin").write_text(content)
        (found,) = check_weights(weights)
        assert found.startswith("owner/model, a.bin") and fault in found
    (folder / "a.bin").rename(folder / "b.bin")  # serves as well, and nothing is known of it
    assert len(check_weights(weights)) == 1
    (folder / "b.bin").write_text("anything")
    assert check_weights(weights) == [] and weights.files[0].local().name == "b.bin"


def test_weights_are_loaded_strictly(hub):
    import timm
    from safetensors.torch import save_file

    folder = cache_files(hub, "owner/model", {})
    weights = entry(HubFile("owner/model", "model.safetensors"), load={"timm": "test_vit", "size": 64})
    state = timm.create_model("test_vit", img_size=64, num_classes=0).state_dict()
    save_file(state, folder / "model.safetensors")
    assert check_weights(weights) == []
    del state["norm.weight"]
    save_file(state, folder / "model.safetensors")
    (fault,) = check_weights(weights)
    assert "does not load" in fault and "norm.weight" in fault
    assert check_weights(weights, load=False) == []
    (folder / "model.safetensors").write_text("half a downl")
    assert "cannot be read" in check_weights(weights)[0]


def test_a_whole_clip_is_loaded_with_its_tokenizer(hub):
    from safetensors.torch import save_file

    from entrep_cli.models.clip import Architecture, build_clip

    folder = cache_files(hub, "owner/model", {"open_clip_config.json": json.dumps({"model_cfg": CLIP})})
    file = HubFile("owner/model", "open_clip_pytorch_model.bin", ("open_clip_model.safetensors",))
    weights = entry(file, load={"clip": "hf-hub:owner/model", "size": 32})
    state = {key: value.clone() for key, value in build_clip(Architecture(CLIP), 32).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    assert check_weights(weights) == []
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CLIP, "embed_dim": 16}}))
    (fault,) = check_weights(weights)
    assert "not those of the CLIP model" in fault and "another shape" in fault
    wide = {**CLIP, "text_cfg": {**CLIP["text_cfg"], "width": 32}}  # open_clip answers this with an AssertionError
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": wide}))
    assert "does not load" in check_weights(weights)[0]
    words = {**CLIP, "text_cfg": {**CLIP["text_cfg"], "hf_tokenizer_name": "owner/words"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": words}))
    assert "owner/words" in check_weights(weights)[0]


# ---------------------------------------------------------------- fetching


@pytest.fixture
def download(hub, monkeypatch):
    """`hf_hub_download` that puts `download.content` into the cache, as a link to a blob, or raises `download.error`."""

    def fake(repository, name, force_download=False):
        fake.calls.append((repository, name, force_download))
        if fake.error:
            raise fake.error
        folder = cache_files(hub, repository, {})
        blob = folder.parents[1] / "blobs" / "0f"
        blob.parent.mkdir(exist_ok=True)
        blob.write_text(fake.content)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(blob)
        return str(folder / name)

    fake.calls, fake.content, fake.error = [], CONTENT, None
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    return fake


def test_fetching_asks_only_for_what_is_not_here(download):
    path, fetched = fetch_file(FILE)
    assert fetched and path.read_text() == CONTENT and FILE.local() == path
    assert fetch_file(FILE) == (path, False)
    assert download.calls == [("owner/model", "a.bin", False)]


def test_what_is_damaged_is_fetched_again(hub, download):
    cache_files(hub, "owner/model", {"a.bin": "half"})
    assert fetch_file(FILE)[1] and download.calls == [("owner/model", "a.bin", True)]


def test_other_bytes_than_published_are_not_kept(hub, download):
    download.content = "wXights"
    with pytest.raises(WeightsError, match="not the published file") as caught:
        fetch_file(FILE)
    assert "SHA-256" in caught.value.what and caught.value.where == "owner/model, file a.bin"
    assert FILE.local() is None and not list((hub / "models--owner--model" / "blobs").iterdir())


def test_what_was_here_before_and_is_still_published_is_left(hub, download):
    """The publisher has another revision than the table knows: it is told, and nobody's file is taken away."""
    download.content = "wXights"
    cache_files(hub, "owner/model", {"a.bin": download.content})
    with pytest.raises(WeightsError, match="left as it was"):
        fetch_file(FILE)
    assert FILE.local().read_text() == download.content


def test_a_full_disk_is_told_before(download):
    with pytest.raises(EntrepError, match="No room"):
        fetch_file(HubFile("owner/model", "a.bin", size=1 << 60))
    assert not download.calls


def test_refusals_say_what_where_and_the_mend(download, monkeypatch):
    from huggingface_hub import errors

    local = errors.LocalEntryNotFoundError("not in the cache")
    local.__cause__ = OSError("Name or service not known")
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 403, "text": ""})()
    cases = [
        (local, "cannot be reached: Name or service not known", "network"),
        (ConnectionError("refused"), "cannot be reached: refused", "hf download owner/model a.bin"),
        (errors.GatedRepoError("x", response=response), "on request", "https://huggingface.co/owner/model"),
        (errors.RepositoryNotFoundError("x", response=response), "No such repository", "hf auth login"),
        (errors.EntryNotFoundError("x"), "does not have this file", "page"),
    ]
    for error, what, hint in cases:
        download.error = error
        with pytest.raises(WeightsError) as caught:
            fetch_file(FILE)
        assert what in caught.value.what and hint in caught.value.hint and caught.value.where == "owner/model, file a.bin"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        fetch_file(FILE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    download.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):  # the command line has words for it
        fetch_file(FILE)
