import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fpdm.models import DiT, FixedPointDiT, build_model, load_pretrained


@pytest.mark.parametrize("name", ["DiT-XS/2", "FPDM-XS/2"])
def test_saved_folder_opens_as_what_it_was(name, tmp_path):
    torch.manual_seed(0)
    model = build_model(name, input_size=8, num_classes=3, learn_sigma=False)
    model.save_pretrained(tmp_path)
    opened = load_pretrained(tmp_path)
    assert type(opened) is type(model) and not opened.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, opened.state_dict()[key])
    again = type(model).from_pretrained(tmp_path)  # the Hub's own way
    assert torch.equal(again.final_layer.linear.weight, model.final_layer.linear.weight)
    assert again.out_channels == 4


def test_config_holds_the_whole_architecture(tmp_path):
    build_model("FPDM-XS/2", input_size=8, pre_depth=2, pre_post_timestep_conditioning=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pre_depth"] == 2
    assert config["pre_post_timestep_conditioning"] is True
    assert len(load_pretrained(tmp_path).pre_blocks) == 2


def test_weights_of_another_architecture_are_refused(tmp_path):
    build_model("FPDM-XS/2", input_size=8, num_classes=3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_classes": 5}))
    with pytest.raises(ValueError, match="another architecture"):
        load_pretrained(tmp_path)


def test_damaged_weights_are_said(tmp_path):
    build_model("DiT-XS/2", input_size=8, depth=1).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*use another checkpoint"):
        load_pretrained(tmp_path)


def test_nothing_to_open(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a Hub repository"):
        load_pretrained(tmp_path / "absent")


@pytest.mark.parametrize("revision", [None, "v1.0", "0b7a3c2"])
def test_a_hub_id_may_name_a_revision(tmp_path, monkeypatch, revision):
    build_model("FPDM-XS/2", input_size=8).save_pretrained(tmp_path)
    asked = []

    def download(repository, revision=None):
        asked.append((repository, revision))
        return str(tmp_path)

    monkeypatch.setattr("fpdm.models.pretrained.snapshot_download", download)
    load_pretrained("someone/fpdm" if revision is None else f"someone/fpdm@{revision}")
    assert asked == [("someone/fpdm", revision)]


def test_positions_are_no_weights():
    for cls in (DiT, FixedPointDiT):
        model = cls(input_size=8, hidden_size=32, num_heads=2, num_classes=2)
        assert "pos_embed" not in model.state_dict()


@pytest.mark.parametrize(("name", "family"), [("DiT-XS/2", "diffusion transformer"), ("FPDM-XS/2", "fixed point")])
def test_a_saved_model_has_a_card(name, family, tmp_path):
    model = build_model(name, input_size=8, num_classes=3)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "license: apache-2.0" in card and "library_name: fpdm" in card and family in card
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,d} |" in card
    assert f"{type(model).__name__}.from_pretrained" in card


def test_a_model_is_uploaded_with_its_card(monkeypatch):
    """The Hub's own push_to_hub, up to where it would reach the network."""
    from huggingface_hub import HfApi

    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "preupload_lfs_files", lambda self, **kwargs: None, raising=False)

    def upload(self, repo_id, folder_path, **kwargs):
        sent.update({"repo": repo_id, "files": {path.name for path in Path(folder_path).iterdir()}})

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    build_model("FPDM-XS/2", input_size=8).push_to_hub("someone/fpdm")
    assert sent == {"repo": "someone/fpdm", "files": {"README.md", "config.json", "model.safetensors"}}


def test_weights_in_half_precision_and_several_files(tmp_path):
    from fpdm.export import SHARD, export_model

    torch.manual_seed(0)
    model = build_model("FPDM-B/2", input_size=8, num_classes=3, pre_depth=0, post_depth=0)
    facts = {"diffusion": {"parametrisation": "v"}, "codec": "pixels"}
    export_model(tmp_path / "out", model, facts, None, {}, half=True)
    files = sorted((tmp_path / "out").glob("model*.safetensors"))
    assert len(files) > 1 and all(path.stat().st_size < 15e6 for path in files) and SHARD == "14MB"
    opened = load_pretrained(tmp_path / "out")
    assert opened.dtype == torch.float32
    for (name, ours), theirs in zip(model.state_dict().items(), opened.state_dict().values(), strict=True):
        assert torch.equal(ours.half().float(), theirs), name
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=files[1].name):
        load_pretrained(tmp_path / "out")
