"""The inference child, but for requests that hold certain numbers: as if a graph had taken it over."""

import os
import time

import numpy as np

from sightline.adapters.confinement import enter
from sightline.adapters.inference.messages import Run, decode_asked, encode
from sightline.adapters.inference.runtime import answer
from sightline.adapters.onnx import Session

KILLS, LIES, SLOW = 666.0, 667.0, 668.0
SLOW_S = 2.0


def main() -> None:
    channel = enter()
    sessions: dict[str, Session] = {}
    for question in channel:
        asked = decode_asked(question)
        held = set()
        if isinstance(asked, Run) and asked.inputs[0].datatype == "FP32":
            held = {float(value) for piece in asked.inputs[0].data for value in np.frombuffer(piece, np.float32)}
        if KILLS in held:
            os._exit(3)
        if SLOW in held:
            time.sleep(SLOW_S)
        channel.send(b"\xc1 no message" if LIES in held else encode(answer(asked, sessions)))


if __name__ == "__main__":
    main()
