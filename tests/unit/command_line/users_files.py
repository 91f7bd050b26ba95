"""A Python file as a user of the command line writes one."""

USERS_FILE = """
import torch
import fganalysis as fga

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
loss_fn = torch.nn.functional.cross_entropy
batch = torch.randn(5, 4), torch.randint(2, (5,))
mine = fga.estimators.WeightPerturbation()


def halved(network, loss_fn, inputs, targets, generator):
    loss_fn(network(inputs), targets).backward()
    noise = {name: torch.randn(weight.shape, generator=generator) for name, weight in network.named_parameters()}
    return {name: weight.grad / 2 + noise[name] / 10 for name, weight in network.named_parameters()}
"""
