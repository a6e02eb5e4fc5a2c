"""Peak memory of training students, by number of images and blocks, in memory and on disk.

    python benchmarks/memory.py

Each row is a process of its own: the growth of its peak memory from before `fit` (teacher loaded) to after,
beside the size of one layer's activations (vit_tiny_patch16_224 at 224 pixels, random weights). "Anonymous" is what the
process itself asked for; "resident" counts mapped files too, as long as the system keeps them in its page cache.
"""

import argparse
import multiprocessing
import resource
import threading
import time


def anonymous_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def measure(n: int, blocks: int, storage: str, connection) -> None:
    import numpy as np

    from skl_transformaly import BlockStudents, TimmExtractor

    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    extractor = TimmExtractor("vit_tiny_patch16_224", weights=None, device="cpu").fit(images)
    warm = BlockStudents(n_blocks=1, max_epochs=1, random_state=0)
    warm.fit(images[:64], extractor=extractor)  # what torch's kernels keep for good is not counted
    before, before_peak = anonymous_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak, done = before, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_mib())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    students = BlockStudents(n_blocks=blocks, max_epochs=1, storage=storage, random_state=0)
    students.fit(images, extractor=extractor)
    done.set()
    watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_peak
    connection.send((peak - before, resident))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 10])
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| images | blocks | storage | one layer, MiB | anonymous, MiB | in layers | resident, MiB |")
    print("|---|---|---|---|---|---|---|")
    for storage in ("ram", "disk"):
        for n in options.images:
            for blocks in options.blocks:
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=measure, args=(n, blocks, storage, sender))
                process.start()
                anonymous, resident = receiver.recv()
                process.join()
                layer = n * 197 * 192 * 4 / 2**20
                row = [
                    n,
                    blocks,
                    storage,
                    f"{layer:.0f}",
                    f"{anonymous:.0f}",
                    f"{anonymous / layer:.1f}",
                    f"{resident:.0f}",
                ]
                print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
