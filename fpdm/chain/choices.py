"""The choices of newer recipes that are compared with the paper's, one at a time, in what they cost and bring."""

CHOICES: dict[str, dict[str, object]] = {  # options of train.py
    "the paper's": {},
    "flow": {"diffusion.process": "flow"},
    "flow, logit-normal t": {"diffusion.process": "flow", "diffusion.draw": "logit-normal"},
    "logit-normal t": {"diffusion.draw": "logit-normal"},
    "log-normal noise levels": {"diffusion.draw": "log-normal", "diffusion.draw_mean": -0.4},
    "QK norm": {"model.qk_norm": "true"},
    "RMS norm": {"model.norm": "rms"},
    "SwiGLU": {"model.mlp": "swiglu"},
    "learned positions": {"model.positions": "learned"},
    "rotary positions": {"model.positions": "rotary"},
    "own value excluded": {"model.exclude_own_value": "true"},
    "betas 0.9, 0.95": {"optim.betas": "[0.9,0.95]"},
    "weight decay 0.1 of matrices": {"optim.weight_decay": 0.1, "optim.decay": "matrices"},
    "Muon": {"optim.optimizer": "muon"},
}
