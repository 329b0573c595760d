"""Train an autoencoder on images, a VAE or a VQ, whose folder `--autoencoder` names afterwards.

usage: transfusion train vae --data PATH [--out FOLDER] [--preset small|paper] [--section.name VALUE ...]
       transfusion train vq --data PATH [--out FOLDER] [--preset small|paper] [--section.name VALUE ...]

The same command again resumes the run. In its folder:

    model/                    the autoencoder, with mean and scale of its latents as measured at the end
    reconstructions.png       held-out images above what became of them; samples/ has the same on the way
    reconstruction.json       PSNR, SSIM, Fréchet distances and what a bicubic reduction reaches, with intervals
"""

import contextlib
import shlex
import time
from dataclasses import replace
from functools import partial

import torch

from transfusion import distributed, rng
from transfusion.codec.autoencoder import Autoencoder
from transfusion.codec.vae import VAE
from transfusion.codec.vq import VQ
from transfusion.commands.reconstruct import load_held_out, load_images, load_judges, report
from transfusion.data.images import Image, ImageBatch, ImagePosition, ImageStream, images, read_images
from transfusion.evaluation.reconstruction import psnr, reconstruct, sheet
from transfusion.files import locked
from transfusion.model_folder import Budget
from transfusion.run.autoencoder import PRESETS, AutoencoderRun, Kind
from transfusion.run.command_line import HELP, changes, parse_preset
from transfusion.run.corpus import keep_corpus
from transfusion.run.record import keep_record
from transfusion.train.autoencoding import AutoencodingObjective, PerceptualNetworks
from transfusion.train.device import memory, pick_device, pick_dtype
from transfusion.train.log import LogFn, Measured, ignored
from transfusion.train.objective import At
from transfusion.train.trainer import Hook, Optimization, Trainer

SHOWN = 20
"""Images of a sheet."""
MEASURED = 10_000
"""Images at most that mean and scale of latents are measured with."""


def run(kind: Kind, arguments: list[str], log: LogFn) -> int:
    """The command."""
    if HELP & set(arguments):
        print((__doc__ or "").strip() + "\n")
    presets = {name: partial(make, kind) for name, make in PRESETS.items()}
    preset, settings = parse_preset(presets, arguments, f"transfusion train {kind}")
    settings.check(kind)
    words = changes(settings, presets[preset]())
    with distributed.joined() as world:
        log = log if world.is_main else ignored
        train_autoencoder(settings, log, command=shlex.join(["transfusion", "train", kind, "--preset", preset, *words]))
    return 0


def train_autoencoder(run: AutoencoderRun, log: LogFn, *, command: str = "") -> Autoencoder:
    """Train a run, from its newest checkpoint if it has one, measure it on held-out images, and save it.

    Raises:
        ConfigError: settings contradict each other, or the folder holds another run.
        ValueError: images or networks can't be read, or no checkpoint is usable.
        OSError: the folder can't be written.
        Diverged: losses are not finite for `trainer.patience` steps.
        InUse: another process works in the folder.
        Stopped: SIGTERM or Ctrl-C came; the run is saved.
    """
    with contextlib.ExitStack() as held:
        return _train_autoencoder(run, log, command, held)


def _train_autoencoder(run: AutoencoderRun, log: LogFn, command: str, held: contextlib.ExitStack) -> Autoencoder:
    """`train_autoencoder`; `held` keeps the folder for this process from the first file that is written."""
    device = pick_device(run.device)
    dtype = pick_dtype(run.dtype, device)
    channels = run.model.convolutions.channels
    networks = PerceptualNetworks.load(run.losses, device)
    judges = load_judges(run.report, device)
    fit = run.images.fit(channels)
    corpus, held_out, note = read_images(run.data, fit)
    for line in (note, networks.describe(run.losses)):
        if line:
            log(line)
    trained, names = images(corpus.report(log))
    shown, shown_titles = load_held_out(held_out, fit, run.report.images, log)

    def keep() -> None:
        held.enter_context(locked(run.folder))
        keep_record(run)
        keep_corpus(run.folder, corpus, instead="choose another --out")

    distributed.from_main(keep)
    with (
        torch.random.fork_rng(devices=[]),
        Budget(memory() // 4, "the settings of --model ask for more than this memory holds"),
    ):
        torch.manual_seed(rng.key(run.seed, "weights"))
        objective = AutoencodingObjective(
            run.model.build(),
            run.losses,
            discriminator=run.discriminator,
            codebook=run.codebook,
            networks=networks,
            seed=run.seed,
        ).to(device)
    model = objective.autoencoder
    log(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(trained):,} images, {len(shown):,} held out; "
        f"on {device.type} in {'bf16' if dtype == torch.bfloat16 else 'fp32'}, into {run.folder}"
    )

    def draw(step: int) -> Measured:
        found = reconstruct(model, shown[:SHOWN])
        sheet(found, run.folder / "samples" / f"step-{step:08d}.png", shown_titles)
        decibels = float(psnr(found.drawn, found.items).mean())
        return Measured({"psnr": decibels}, f"PSNR {decibels:.2f} dB on {len(found.items)} held-out images")

    optimizers = [Optimization(model, run.optimizer)]
    if objective.discriminator is not None:
        start = run.losses.gan_start
        optimizers.append(Optimization(objective.discriminator, run.discriminator_optimizer, name="discriminator", start=start))
        if start >= run.trainer.steps:
            log(f"the discriminator would begin at step {start:,}, after the last one: this run has none (--losses.gan-start)")
    here = distributed.world()
    share = {"rank": here.rank, "world": here.size, "parts": run.trainer.accumulate}
    trainer = Trainer(
        objective,
        ImageStream(trained, names, run.images, channels=channels, seed=run.seed, **share),
        optimizers=optimizers,
        config=run.trainer,
        checkpoint_config=run.checkpoint,
        folder=run.folder,
        digest=run.digest,
        device=device,
        dtype=dtype,
        hooks=[Hook(draw, run.trainer.sample_every)],
    )
    if trainer.resume(log):
        log(f"resuming from step {trainer.step}")
    trainer.run()
    trainer.average()
    if not here.is_main:
        return model
    _measure_latents(run, model, trained, log)
    model.save(run.folder / "model")
    log(f"autoencoder {model.digest} is saved in {run.folder / 'model'}")
    report(model, shown, shown_titles, judges, run.folder, log, seed=run.seed, command=command)
    return model


def step_seconds(run: AutoencoderRun) -> float:
    """Seconds of a step of an autoencoder's run without discriminator, on noise."""
    device = pick_device(run.device)
    dtype = pick_dtype(run.dtype, device)
    with torch.random.fork_rng(devices=[]):
        model = run.model.build()
        networks = PerceptualNetworks.load(run.losses, device)
        parts = {"discriminator": run.discriminator, "codebook": run.codebook, "networks": networks}
        objective = AutoencodingObjective(model, replace(run.losses, gan=0.0), seed=0, **parts).to(device)
    count, side = run.images.batch_size, run.images.side
    noise = rng.normal([rng.key("step", i) for i in range(count)], (model.channels, side, side)).to(device)
    batch = ImageBatch(noise, tuple(range(count)), ImagePosition(), ("",) * count)
    optimization, times = Optimization(model, run.optimizer), []
    for step in range(4):
        began = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            terms = objective.loss(batch, At(step, 4))
        torch.stack([term.weight * term.mean.value for term in terms]).sum().backward()
        optimization.prepare(step, 4)
        optimization.optimizer.step()
        objective.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _measure_latents(run: AutoencoderRun, model: VAE | VQ, trained: list[Image], log: LogFn) -> None:
    """Mean and scale of the latents' channels, over training images as they are, without augmentation."""
    order = rng.generator(rng.key(run.seed, "measured")).permutation(len(trained))[:MEASURED]
    fit, size = run.images.fit(model.channels), run.images.batch_size
    chosen = [trained[int(i)] for i in order]
    batches = (load_images(chosen[first : first + size], fit, log)[0] for first in range(0, len(chosen), size))
    model.measure(batch for batch in batches if len(batch))
