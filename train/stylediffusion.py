"""StyleDiffusion, amortised: train one mapping network for all images and timesteps on a frozen Stable Diffusion.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.stylediffusion --config configs/stylediffusion/sd15.yaml
python -m train.stylediffusion --config configs/stylediffusion/miniature.yaml --optim.lr 2e-4
"""

from train.methods.stylediffusion.task import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
