"""The largest values that settings take: far above any real use, so that a slip of the hand ends at once."""

STEPS = 10**9  # of an optimizer, and intervals between steps
SAMPLES = 10**7  # images drawn or scored
RECORDS = 10**8  # of a latent store
BATCH = 10**6
WIDTH = 65_536  # of a network; attention heads too
DEPTH = 1_000
CHANNELS = 8_192  # of a VAE's level
LATENT = 1_024  # channels, height and width of a latent
RESOLUTION = 16_384  # pixels
CLASSES = 10**7
TIMESTEPS = 100_000  # as in fpdm.diffusion
TRAINING_UPDATES = 1_000  # of the implicit layer, in one step
ITERATIONS = 10_000  # of the implicit layer, in one solve
PASSES = 10**8  # block passes of one image
SEED = 2**31 - 1  # what every random generator takes
PROCESSES = 100_000
WORKERS = 1_024  # processes or threads on one machine
REPEATS = 100_000
SECONDS = 10**9
MINUTES = 10**7
FACTOR = 10**9  # of numbers that scale something
GPU_GIB = 100_000
