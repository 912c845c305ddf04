"""A meter's child that somebody took over: it answers what no meter does. Started by `test_differences.py`."""

from sightline.adapters.confinement import enter

if __name__ == "__main__":
    channel = enter()
    for _ in channel:
        channel.send(b"\xc1 is no MessagePack")
