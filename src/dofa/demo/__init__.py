"""`dofa demo`: one model learns five sensors in a few minutes, and a page shows what it learned."""

from dofa.demo.run import run_demo

__all__ = ["run_demo"]
