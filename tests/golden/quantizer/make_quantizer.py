"""Makes `quantizer.json` beside this script: deltas and the codes, scales and offsets that NumPy computes for them.

Usage: `python make_quantizer.py` (needs NumPy alone). The method is the one that `crates/delta/src/fit.rs` describes,
written again from that description in float64 with float32 where the stored form rounds. Codes, not values, are what
the Rust test compares exactly; scales and offsets within one step of f16.
"""

import json
from pathlib import Path

import numpy as np

STARTS = [1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3]
ROUNDS = 2


def codes_of(x, scale, offset, bits):
    """Codes 0..2^bits of values on the grid `offset + scale * (2u - (2^bits - 1))`."""
    half = 2 ** (bits - 1)
    if scale == 0:
        return np.where(x < offset, half - 1, half)
    return np.clip(np.floor((x - offset) / (2 * scale) + half), 0, 2 * half - 1).astype(int)


def levels_of(codes, bits):
    """Odd levels -(2^bits - 1) .. 2^bits - 1 of codes."""
    return 2.0 * codes - (2**bits - 1)


def fit(x, bits, symmetric):
    """The group's (scale, offset) by least squares."""
    if bits == 1 and symmetric:
        return np.abs(x).mean(), 0.0
    start = 0.0 if symmetric else x.mean()
    reach = np.abs(x - start).max()
    if reach == 0:
        return 0.0, start
    best = (0.0, start, -1.0)
    for ratio in STARTS[:1] if bits == 1 else STARTS:
        scale, offset = ratio * reach / (2**bits - 1), start
        for _ in range(ROUNDS):
            level = levels_of(codes_of(x, scale, offset, bits), bits)
            if symmetric:
                scale = (x * level).sum() / (level**2).sum()
                explained = scale * (x * level).sum()
            elif level.var() == 0:
                scale, offset, explained = 0.0, x.mean(), 0.0
            else:
                covariance = ((x - x.mean()) * (level - level.mean())).sum()
                scale = covariance / ((level - level.mean()) ** 2).sum()
                offset = x.mean() - scale * level.mean()
                explained = scale * covariance
        if explained > best[2]:
            best = (scale, offset, explained)
    return best[:2]


def clipped(x, threshold):
    """Values clipped at mean ± threshold sample standard deviations; one element alone is left as it is."""
    if threshold is None or x.size < 2:
        return x
    return np.clip(x, x.mean() - threshold * x.std(ddof=1), x.mean() + threshold * x.std(ddof=1))


def quantize(delta, bits, group, symmetric, threshold):
    """Codes (rows, cols), and scales and offsets (rows, groups) as stored, multiplied out."""
    x = clipped(delta.astype(np.float64), threshold)
    size = group or x.shape[1]
    starts = range(0, x.shape[1], size)
    fitted = np.array([[fit(row[s : s + size], bits, symmetric) for s in starts] for row in x])
    tensor_scale = np.float32(np.abs(fitted).max())
    if tensor_scale > 0:
        fitted = (fitted / tensor_scale).astype(np.float16).astype(np.float64) * tensor_scale
    codes = [
        np.concatenate([codes_of(row[s : s + size], *fitted[r, g], bits) for g, s in enumerate(starts)])
        for r, row in enumerate(x)
    ]
    return np.array(codes), fitted[..., 0], fitted[..., 1]


def main():
    """Writes the cases."""
    random = np.random.default_rng(7)
    cases = []
    for bits in (1, 2, 4):
        for symmetric in (True, False):
            for rows, cols, group, threshold in [
                (3, 70, 32, 3.0),
                (2, 128, 64, None),
                (4, 33, None, 1.5),
                (1, 1, 32, 3.0),
            ]:
                delta = random.standard_t(4, (rows, cols)).astype(np.float32) * np.float32(1e-3) + np.float32(2e-4)
                if rows == 3:
                    delta[1, :40] = 0.0
                    delta[2, 5] = -0.0
                codes, scales, offsets = quantize(delta, bits, group, symmetric, threshold)
                cases.append(
                    {
                        "bits": bits,
                        "symmetric": symmetric,
                        "rows": rows,
                        "cols": cols,
                        "group": group,
                        "threshold": threshold,
                        "delta": [float(v) for v in delta.ravel()],
                        "codes": codes.ravel().tolist(),
                        "scales": scales.ravel().tolist(),
                        "offsets": offsets.ravel().tolist(),
                    }
                )
    out = Path(__file__).with_name("quantizer.json")
    out.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
