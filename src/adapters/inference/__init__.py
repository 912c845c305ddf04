"""Inference for whoever asks directly: queues of requests in front of one confined child per device.

`server.py` is what others use. Requests that can be run together wait in `queue.py`; `lane.py` is the parent's end of
a child, `runtime.py` the child's own program; `messages.py` is what they say to each other, `model.py` what is known
of a model on this side. Tensors are bytes here: only the child makes arrays of them.
"""
