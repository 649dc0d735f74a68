# placeholder of the founder, to be replaced whole by the helper "experts"; model/generate/cache.py calls cache_shapes
import flax.linen as nn
class LatentAttention(nn.Module):
    config: object
def cache_shapes(config, rows, slots): ...  # -> {"latent": ((rows, slots, R), dtype), "rotated": ((rows, slots, P), dtype)}
