#!/usr/bin/env python
"""Write a trained model as ONNX or as a program of torch.export, checked against PyTorch."""

from coc_mm.cli.export import main

if __name__ == '__main__':
    raise SystemExit(main())
