"""Images -> token shards -> batches. Imports `model` only; order and storage code import no
torch."""
