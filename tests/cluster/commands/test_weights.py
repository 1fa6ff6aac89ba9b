"""`addp import --resize`: networks of one size become files of another."""

from __future__ import annotations

import json
from pathlib import Path

from model.addp import ADDP
from model.official import official_metadata, official_state, write_state
from model.predictor import TokenPredictor
from model.vq import VQTokenizer
from model.weights import fingerprint, load_network, load_tokenizer
from tests.cluster.calling import addp
from tests.model.test_resizing import LARGE, network_of


def test_an_import_says_what_it_interpolates(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    networks = {
        "addp": network_of("addp"),
        "predictor": network_of("predictor"),
        "tokenizer": tokenizer,
    }
    write_state(official_state(networks), tmp_path / "a.safetensors", official_metadata(networks))
    done = addp("import", tmp_path / "a.safetensors", tmp_path / "out", "--resize", 32)
    assert done.code == 0 and [json.loads(line)["kind"] for line in done.stdout.splitlines()] == [
        "addp",
        "predictor",
        "tokenizer",
    ]
    assert done.stderr.splitlines() == [
        "addp resized from 16 to 32 pixels: pos_embed, decoder_pos_embed_learned, "
        "decoder_pos_mask_embed, decoder_pos_token_embed interpolated from 4 x 4 to 8 x 8",
        "predictor resized from 16 to 32 pixels: token_emb.position_embeddings.weight, "
        "decoder_pos_embed_learned interpolated from 4 x 4 to 8 x 8",
        "tokenizer resized from 16 to 32 pixels: it has no positions",
    ]
    for kind, network_class in (("addp", ADDP), ("predictor", TokenPredictor)):
        network = load_network(tmp_path / "out" / f"{kind}.safetensors", kind, geometry=LARGE)
        assert isinstance(network, network_class)
    made = load_tokenizer(tmp_path / "out" / "tokenizer.safetensors")
    assert made.config.image_size == 32 and fingerprint(made) == fingerprint(tokenizer)
    again = addp("import", tmp_path / "out" / "addp.safetensors", tmp_path / "same", "--resize", 32)
    assert again.code == 0 and again.stderr == ""
    wrong = addp("import", tmp_path / "a.safetensors", tmp_path / "no", "--resize", 30)
    assert (
        wrong.code == 78 and "the addp cannot be resized to 30 pixels: image_size" in wrong.stderr
    )
    assert not (tmp_path / "no").exists()
