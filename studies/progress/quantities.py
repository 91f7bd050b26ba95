"""Long names and units of every variable of the study's results."""

from __future__ import annotations

KINDS = {"_se": "standard error of: ", "_low": "lower end of: ", "_high": "upper end of: "}
RANK = ("effective rank of the curvature", "1")
EFFICIENCY = ("expected decrease over that of the gradient", "1")
STEP = "(unit of weight)² per loss"
OF_STEPS = {
    "predicted": ("decrease of the loss that the quadratic model predicts", "loss"),
    "actual": ("mean decrease of the loss after a step", "loss"),
    "model": ("the same along the guesses whose losses are evaluated", "loss"),
    "model_error": ("decrease of the loss less the quadratic model of it along the same guesses", "loss"),
    "odd_error": ("part of the error of the model that changes sign with the step", "loss"),
    "best": ("best step size of the sweep over the advised one", "1"),
    "best_step": ("advised step size", STEP),
    "curved_efficiency": EFFICIENCY,
    "unseen_curvature": ("second difference of the loss over the curvature, less 1", "1"),
    "effective_rank": RANK,
    "gradient_curvature": ("curvature along the gradient", "loss³ per (unit of weight)⁴"),
    "gradient_step": ("best step size of backpropagation", STEP),
    "loss": ("loss of the batch", "loss"),
    "has_kinks": ("1 if the loss has kinks, 0 if not", "1"),
}
OF_TRAINING = {
    "loss": ("loss of the one batch, or of the training set where batches are new", "loss"),
    "advised_step": ("advised step size", STEP),
    "curved_efficiency_along": ("expected decrease over that of the gradient, at moments of the training", "1"),
    "diverged_at": ("step at which the training diverged", "1"),
    "curved_efficiency": EFFICIENCY,
    "unseen_curvature": OF_STEPS["unseen_curvature"],
    "effective_rank": RANK,
    "efficiency": ("squared cosine of the guess with the gradient, as that of a step without curvature", "1"),
    "cosine": ("mean cosine of the guess with the gradient", "1"),
    "variance": ("total variance of the guess over the squared norm of the gradient", "1"),
    "passes": ("stated cost of a step", "forward passes"),
}
OF_WIDTHS = {
    "effective_rank": RANK,
    "curvature_trace": ("trace of the curvature", "loss per (unit of weight)²"),
    "gradient_curvature": OF_STEPS["gradient_curvature"],
    "squared_gradient": ("squared norm of the gradient", "(loss per unit of weight)²"),
    "loss": OF_STEPS["loss"],
    "parameters": ("number of weights", "1"),
}
