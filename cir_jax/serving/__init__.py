# SPDX-License-Identifier: Apache-2.0
"""`cir-jax serve`: the page and the API over one or several indexes.

app         the parts put together
guard       what is asked of every request before it is let in, and noted when it has left
batching    work of all connections, gathered onto the device
served      the indexes that are served, and their new generations
bodies      requests and answers as JSON; refusals: those of requests that are not answered
searching, listing, pictures, embeddings, reranking, pages    the addresses
"""
