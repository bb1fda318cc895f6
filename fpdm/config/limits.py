"""The largest values of settings: far above any real use, so that a typing error is found at once."""

STEPS = 10**9  # optimizer steps, and intervals between them
SAMPLES = 10**7  # images sampled or scored
RECORDS = 10**8  # of a latent store
BATCH = 10**6
WIDTH = 65_536  # of a network; also number of attention heads
DEPTH = 1_000
CHANNELS = 8_192  # of one level of a VAE
LATENT = 1_024  # channels, height and width of a latent
RESOLUTION = 16_384  # pixels
FILE_IN_ZIP = 2**29  # bytes of an image, unpacked
UNPACKED = 100  # times as many bytes as an array takes in a compressed file
CLASSES = 10**7
TIMESTEPS = 100_000  # as in fpdm.processes
TRAINING_UPDATES = 1_000  # of the implicit layer, in one step
DRAW = 10  # mean and deviation of the normal numbers from which timesteps are made; timestep 990 is at 7.4
ITERATIONS = 10_000  # of the implicit layer, in one solve
PASSES = 10**8  # block passes of one image
SEED = 2**31 - 1  # every random generator accepts it
PROCESSES = 100_000
WORKERS = 1_024  # processes or threads on one machine
REPEATS = 100_000
SECONDS = 10**9
MINUTES = 10**7
FACTOR = 10**9  # numbers that scale something
GPU_GIB = 100_000
