"""Images -> token shards -> batches. Imports nothing of this project but `model`.

    storage    folders and buckets behind one interface
    images     where images lie, and how they become views
    shards     the format of a token data set
    streaming  batches of a data set for training, as a function of the step
    sharding   jobs that make a data set of images

Each package imports only those above it. Storage, order and format import no torch.
"""
