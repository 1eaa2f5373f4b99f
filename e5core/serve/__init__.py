"""Inference over HTTP: an ASGI application around the models, and the program that serves it.

A request is parsed by its dialect, admitted or refused as a whole, tokenized, and put into the
queue. One worker takes a batch out of all requests whenever it is free. The event loop computes
nothing that takes long.
"""
