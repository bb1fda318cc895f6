import json

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


def test_positions_are_no_weights():
    for cls in (DiT, FixedPointDiT):
        model = cls(input_size=8, hidden_size=32, num_heads=2, num_classes=2)
        assert "pos_embed" not in model.state_dict()
