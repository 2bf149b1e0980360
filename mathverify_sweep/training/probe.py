"""What torch and bitsandbytes can do here, as a line of JSON: `python -m mathverify_sweep.training.probe`.

For `mvsweep doctor`, which starts it as a process and stops waiting when a driver hangs.
"""

from __future__ import annotations

import json
import sys

import bitsandbytes
import torch

_ERROR = 0.15
"""NF4 keeps normally distributed weights to about a tenth of their standard deviation."""


def main() -> None:
    """Print versions, and for each device whether a weight survives NF4."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    said = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bitsandbytes": bitsandbytes.__version__,
        "devices": [_device(device) for device in devices],
    }
    sys.stdout.write(json.dumps(said) + "\n")


def _device(device: torch.device) -> dict[str, str]:
    try:
        error = _nf4_error(device)
        trouble = "" if error < _ERROR else f"a weight comes back from NF4 with an error of {error:.2f}"
        return {"name": str(device), "found": f"{_name(device)}, error {error:.3f}", "trouble": trouble}
    except Exception as error:  # noqa: BLE001 - whatever it raises is what the person wants to read
        return {"name": str(device), "found": "", "trouble": f"{type(error).__name__}: {error}".splitlines()[0]}


def _nf4_error(device: torch.device) -> float:
    """Root mean square error of a standard normal weight after NF4 and back."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).to(device)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    back = bitsandbytes.functional.dequantize_4bit(packed, state)
    return float((back - weight).square().mean().sqrt())


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"


if __name__ == "__main__":
    main()
