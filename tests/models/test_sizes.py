import pytest
import torch

from fpdm.models import DiT, FixedPointDiT, build_model
from fpdm.models.sizes import FAMILIES, class_of, settings_of


@pytest.mark.parametrize(("name", "parameters"), [("DiT-XL/2", 674_834_720), ("FPDM-XL/2", 86_500_256)])
def test_parameters_of_the_paper(name, parameters):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("size", ["XS", "S", "B", "L", "XL"])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_every_name_builds(size, patch):
    with torch.device("meta"):
        assert isinstance(build_model(f"DiT-{size}/{patch}"), DiT)
        fpdm = build_model(f"FPDM-{size}/{patch}", num_classes=7)
    assert isinstance(fpdm, FixedPointDiT)
    assert fpdm.patch_size == patch
    assert fpdm.y_embedder.embedding_table.num_embeddings == 8


@pytest.mark.parametrize("name", ["DiT-XXL/2", "FPDM-XL/3", "UNet-S/2", "FPDM-XL"])
def test_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match="FAMILY-SIZE/PATCH"):
        build_model(name)


def test_overrides_and_unknown_ones():
    assert len(build_model("DiT-XS/2", input_size=8, depth=3).blocks) == 3
    with pytest.raises(ValueError, match="has no such setting; remove it"):
        build_model("DiT-XS/2", pre_depth=1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("patch_size", 3), ("num_heads", 5), ("num_classes", 0), ("class_dropout", 1.0), ("pre_depth", -1)],
)
def test_impossible_sizes_are_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        build_model("FPDM-XS/2", **{"input_size": 8, setting: value})


def test_a_family_is_told_by_its_arguments(monkeypatch):
    class Twin(FixedPointDiT):
        pass

    fpdm = dict.fromkeys(settings_of(FixedPointDiT), 0)
    assert class_of(fpdm) is FixedPointDiT and class_of({"depth": 3}) is DiT
    monkeypatch.setitem(FAMILIES, "Twin", Twin)
    with pytest.raises(ValueError, match="Twin and FPDM take the same arguments"):
        build_model("Twin-XS/2")
    with pytest.raises(ValueError, match="not the config of a DiT or FPDM or Twin"):
        class_of({"lanes": 3})
