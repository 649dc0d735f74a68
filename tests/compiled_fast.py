"""XLA flags for tests.

Compiling is most of what small tests do, and what it compiles runs for milliseconds: leave out what makes that faster.
Without the newer emitters of fused operations a program compiles in two thirds of the time; newer versions have no
others. What users run is compiled with all of this by the smoke runs of .ci/run.
"""

from importlib.metadata import version

COMPILED_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):
    COMPILED_FAST += " --xla_cpu_use_fusion_emitters=false"
