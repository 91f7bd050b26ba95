"""
The first hour
==============

A network of your own, an estimator of your own, and what there is to know about a step along its guesses: is it right
on average, how noisy is it, which step size suits it, and how many guesses are worth their price?
"""

# %%
# A network, a batch, and a snapshot
# ----------------------------------
#
# `capture` freezes a copy of the network on one batch, and checks that it can be measured.

import torch

import fganalysis as fga

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5))
inputs, targets = torch.randn(32, 20), torch.randint(5, (32,))
snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)

# %%
# An estimator as a function
# --------------------------
#
# One guess, by parameter name: a random direction, scaled by the difference of two losses.


def one_sided(network, loss_fn, inputs, targets, generator):
    direction = {name: torch.randn(weight.shape, generator=generator) for name, weight in network.named_parameters()}
    moved = {name: weight + 1e-3 * direction[name] for name, weight in network.named_parameters()}
    change = loss_fn(torch.func.functional_call(network, moved, inputs), targets) - loss_fn(network(inputs), targets)
    return {name: change / 1e-3 * direction[name] for name in direction}


mine = fga.estimators.from_function(one_sided)

# %%
# Bias, variance and cosine
# -------------------------
#
# Each number has a 95 % interval and, where a closed form is known, its prediction beside it.

tree = fga.diagnose(snapshot, ["weight", "activity", mine], n_guesses=512)
table = fga.summary(tree, ["relative_bias", "variance", "cosine", "efficiency"])
columns = ["estimator", "space", "variance", "variance_low", "variance_high", "variance_predicted", "cosine"]
table.query("layer == 'all'")[columns]

# %%
# The same as a figure: bias against variance, measured and predicted.

figure = fga.plotting.bias_variance(tree)

# %%
# Is it unbiased?
# ---------------
#
# `check_unbiased` draws until it can decide, or says how many guesses a decision would take.

print(fga.check_unbiased(mine, snapshot, tolerance=0.5, max_guesses=2**11))

# %%
# Which step, and how many guesses?
# ---------------------------------
#
# The loss is curved, so that a noisy guess wants a smaller step. `progress` measures the curvature along the guesses;
# `advise` makes sentences of what is measured, each with its interval.

progress = fga.progress(snapshot, ["weight", "activity"], n_guesses=256)
print(fga.advise(progress, diagnosis=tree))
