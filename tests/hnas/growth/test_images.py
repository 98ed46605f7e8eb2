"""The command ``hnas-train grow`` on a supernet of photographs."""

from __future__ import annotations

import json
import re

from hnas import recipes
from hnas.cli import train_main
from hnas.cost.flops import parameters
from hnas.recipes.run import RunOptions, run_recipe
from hnas.training.folder import load_supernet
from tests.hnas import photos


def test_a_trained_classifier_grows_within_its_budget(tmp_path, capsys):
    """Two steps for each stage: depth, width and type are opened once each, and every edit keeps the outputs."""
    (tmp_path / "small.toml").write_text(f"{photos.RECIPE}\n[grow]\nstages = 3\n".replace('"sandwich"', '"spos"'))
    recipe, data = recipes.load(str(tmp_path / "small.toml")), photos.write(tmp_path / "photos", each=40)
    run_recipe(recipe, data, tmp_path / "small", RunOptions(epochs=1, alone="smallest"))
    before = weights_of(tmp_path / "small")
    words = ["grow", "--supernet", str(tmp_path / "small"), "--data", str(data), "--epochs", "2", "--json"]
    assert train_main([*words, "--max-weights", str(3 * before), "--out", str(tmp_path / "grown")]) == 0
    said = capsys.readouterr()
    proofs = json.loads(said.out)["growth"]
    assert proofs[0]["before"] == before
    assert [kind_of(proof["edit"]) for proof in proofs] == ["depth", "width", "type"]
    assert all(max(proof["train"], proof["evaluation"]) <= 1e-5 for proof in proofs)
    assert before < weights_of(tmp_path / "grown") <= 3 * before
    assert f"(at most {3 * before})" in said.err
    assert train_main([*words, "--max-weights", str(before - 1), "--out", str(tmp_path / "none")]) == 2
    assert re.search(rf"above the limit: it has {before} weights \(at most {before - 1}\)", capsys.readouterr().err)


def kind_of(edit):
    return "type" if edit["edit"] == "type" else edit["choice"].rpartition(".")[2]


def weights_of(folder) -> int:
    supernet, _ = load_supernet(folder)
    return parameters(supernet.skeleton(supernet.space.largest))
