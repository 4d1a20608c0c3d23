"""InstructPix2Pix: train a Stable Diffusion to follow orders on a picture that it sees, from pairs of pictures.

accelerate launch --config_file configs/accelerate/ddp.yaml \
    -m train.instruct_pix2pix --config configs/instruct_pix2pix/sd15.yaml
python -m train.instruct_pix2pix --config configs/instruct_pix2pix/miniature.yaml --optim.lr 2e-4
"""

from train.methods.instruct_pix2pix.task import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
