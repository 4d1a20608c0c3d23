"""TurboEdit: train a noise encoder F on a frozen few-step generator G with MSE + lambda KL.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.turboedit --config configs/turboedit/sdxl_turbo.yaml
python -m train.turboedit --config configs/turboedit/miniature.yaml --optim.lr 2e-4
"""

from train.methods.turboedit.task import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
