"""Does the certificate of a stack ever promise too much? Random nets, against tests/stack_bounds.py.

python experiments/false_yes_of_stacks.py [--nets 100] [--tries 2048] [--seed 0] [--results FOLDER]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from keep import RESULTS, about, keep

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from stack_bounds import ASCENT, KEPT, random_stack, worst

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=int, default=100)
    parser.add_argument("--tries", type=int, default=2048, help="in closed form, of each net")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result, found = about(__file__, seed=given.seed), []
    for k in range(given.nets):
        torch.manual_seed(given.seed * 10**6 + k)
        rng = np.random.default_rng([given.seed, k])
        found.append(worst(random_stack(rng), given.tries, rng))
        if found[-1] > 1 + 1e-9:
            print(f"net {k} of seed {given.seed}: {found[-1]:.12g} times what its certificate says")
    proven = np.array([ratio for ratio in found if ratio == ratio])
    result |= {"nets": given.nets, "certified": len(proven), "tries": given.tries * len(proven)}
    result |= {"ascended": KEPT * ASCENT * len(proven), "wrong": int((proven > 1 + 1e-9).sum())}
    result |= {f"reached, {100 * q:g} %": float(np.quantile(proven, q)) for q in (0.1, 0.5, 1)}
    print(result | {"result": str(keep("false-yes-of-stacks", result, given.results))})
    sys.exit(1 if result["wrong"] else 0)
