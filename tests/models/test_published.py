import argparse

import pytest
import torch

from fpdm.models.convert import from_published, infer_config, read_published


@pytest.mark.parametrize("name", ["dit", "fpdm_untimed", "fpdm_timed"])
def test_architecture_is_read_from_the_weights(recorded, name):
    data = recorded(name)
    timed = {"pre_post_timestep_conditioning": True} if name == "fpdm_timed" else {}
    config = infer_config(data.state, num_heads=data.config["num_heads"])
    assert all(data.config[key] == value for key, value in config.items()), config
    model = from_published(data.state, **config, **timed)
    assert sum(value.numel() for value in model.state_dict().values()) > 0


def test_width_of_no_named_size_needs_the_heads(recorded):
    with pytest.raises(ValueError, match="num_heads cannot be inferred"):
        infer_config(recorded("dit").state)


def test_bare_wrapped_and_training_checkpoints(recorded, tmp_path):
    state = recorded("dit").state
    ema = {f"module._orig_mod.{name}": value + 1 for name, value in state.items()}
    training = {"model": state, "ema": ema, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)}
    for name, content in (("bare.pt", state), ("training.pt", training)):
        torch.save(content, tmp_path / name)
    assert read_published(tmp_path / "bare.pt").keys() == state.keys()
    read = read_published(tmp_path / "training.pt")
    assert all(torch.equal(read[name], state[name] + 1) for name in state)
    assert torch.equal(read_published(tmp_path / "training.pt", "model")["pos_embed"], state["pos_embed"])


class Evil:
    def __reduce__(self):
        return (print, ("code in the file was run",))


def test_files_that_are_refused(recorded, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_published(tmp_path / "absent.pt")
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("hello\n")
    (tmp_path / "empty.pt").touch()
    for name in ("evil", "text", "empty"):
        with pytest.raises(ValueError, match="not a checkpoint of tensors and plain containers"):
            read_published(tmp_path / f"{name}.pt")
    assert capsys.readouterr().out == ""
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_published(tmp_path / "list.pt")
    torch.save({"model": {}}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match="has no 'ema' weights, only model"):
        read_published(tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"has no 'x_embedder\.proj\.weight'"):
        infer_config({"a": torch.zeros(1)})
