"""The link between two devices of one host, measured by two processes of this machine.

Run as ``python -m profiler.loopback --rank 0|1 --store FILE ...``: each process is one end, as two
ranks of a plan on this host would be. The first prints what it found as one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from profiler.cluster import Host, Link
from profiler.errors import RankFailedError
from profiler.linkprobe import Wire, answer_probe, send_probe
from profiler.occupancy import Flow, measure_occupancy, processor_piece, serve_occupancy
from profiler.stores import file_store, join_group

START_S = 60.0
"""Seconds that the processes may take to start (they import torch) and to end."""


def measure_loopback(host: Host, *, budget_s: float, timeout_s: float) -> Link:
    """The link of ``host``, which is this machine, with itself.

    Takes some seconds: two processes are started.

    Raises:
        RankFailedError: they did not end well, or in time.
    """
    threads = min(device.threads for device in host.devices)
    limit_s = START_S + 10 * budget_s + timeout_s
    with tempfile.TemporaryDirectory(prefix="apportion-loopback-") as directory:
        ends = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "profiler.loopback"),
                    *("--rank", str(rank), "--store", str(Path(directory) / "store")),
                    *("--host", host.name, "--threads", str(threads)),
                    *("--budget", str(budget_s), "--timeout", str(timeout_s)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the caller, which then ends them
            )
            for rank in range(2)
        ]
        try:
            output, errors = ends[0].communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise RankFailedError(
                f"measuring the link within {host.name} did not end in {limit_s:g} s"
            ) from error
        finally:
            for end in ends:
                end.kill()
                with contextlib.suppress(ValueError):  # its streams have been read to the end
                    end.communicate()
    if ends[0].returncode:
        last = errors.strip().splitlines()[-1:] or ["no reason given"]
        raise RankFailedError(f"measuring the link within {host.name} failed: {last[0][:300]}")
    figures = json.loads(output.splitlines()[-1])
    return Link(source=host.name, target=host.name, **figures)


def main() -> None:
    """Be one end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    options = parser.parse_args()
    store = file_store(options.store, 2)
    join_group(store, rank=options.rank, world_size=2, timeout_s=options.timeout)
    wire = Wire(
        peer=1 - options.rank,
        own=f"process {options.rank} on host {options.host}",
        other=f"process {1 - options.rank} on host {options.host}",
        step=f"measuring the link within {options.host}",
        timeout_s=options.timeout,
    )
    torch.set_num_threads(options.threads)
    measured = partial(
        measure_occupancy,
        piece=processor_piece(),
        threads=options.threads,
        budget_s=options.budget,
    )
    if options.rank == 0:
        fit = send_probe(wire, budget_s=options.budget)
        sending = measured(wire, Flow.OUT, fit)
        serve_occupancy(wire, Flow.OUT, fit)
        taken = torch.zeros(1, dtype=torch.float64)
        wire.wait(wire.receive(taken.view(torch.uint8), 0), 8)
        figures = {
            "latency_s": float(f"{fit.latency_s:.4g}"),
            "bytes_per_s": float(f"{fit.bytes_per_s:.4g}"),
            "send_occupancy": round(sending, 3),
            "receive_occupancy": round(float(taken), 3),
            "error_fraction": round(fit.error_fraction, 4),
        }
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        fit = answer_probe(wire)
        serve_occupancy(wire, Flow.IN, fit)
        receiving = measured(wire, Flow.IN, fit)
        taken = torch.tensor([receiving], dtype=torch.float64)
        wire.wait(wire.send(taken.view(torch.uint8), 0), 8)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
