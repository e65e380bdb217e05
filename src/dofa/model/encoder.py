"""DOFA, the encoder: any bands in, tokens, pooled vectors and feature maps out."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dofa import sensors
from dofa.errors import ConfigError, DataError
from dofa.model.config import POLARISATIONS, EncoderConfig, Origin, TrainedSensor
from dofa.model.lora import require_merged
from dofa.model.patch_embed import DynamicPatchEmbedding, embed_patches, encode_wavelengths
from dofa.model.separate import SeparatePatchEmbedding
from dofa.model.vit import Grid, Intermediates, VisionTransformer, interpolate_positions
from dofa.sensors import Band, Sensor, check_wavelength_um

Wavelengths = Tensor | Sequence[float] | Sensor | str | Sequence[Band] | Sequence[Sensor]


class DOFA(VisionTransformer):
    """One Vision Transformer for images of any bands.

    `model(x, wavelengths)` is `forward_head(forward_features(x, wavelengths))`. x is (B, C, H, W), normalised, of any
    size from one patch on; wavelengths are micrometres, one a band in the order of the bands, or a `Sensor` (or the
    name of a catalogued one), or a sequence of `Band`.

    Args:
        config: sizes and conventions; see `dofa.model.config.preset` for the named ones.

    Source: arXiv 2403.15356.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.name = ""  # it was loaded by; the same weights may have several
        self.origin = Origin()  # licence and provenance of loaded weights, written again by checkpoint.save
        sizes = config.width, config.patch, config.patch_offset
        self.patch_embed: DynamicPatchEmbedding | SeparatePatchEmbedding
        if config.embedding == "separate":
            self.patch_embed = SeparatePatchEmbedding(*sizes, config.sensors)
        else:
            self.patch_embed = DynamicPatchEmbedding(*sizes, config.wave_dim)
            if config.polarisation_embedding:
                # Zero at first: a new model starts with one kernel for VV and VH and learns to tell them apart.
                self.polarisation_embed = nn.Parameter(torch.zeros(len(POLARISATIONS), config.wave_dim))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, beside biases and norms."""
        if self.config.embedding == "separate":
            return super().no_weight_decay()  # the embedding says its own
        generator = "patch_embed.weight_generator"
        learned = {f"{generator}.weight_tokens", f"{generator}.bias_token"}
        if self.config.polarisation_embedding:
            learned.add("polarisation_embed")
        return super().no_weight_decay() | learned

    def band_inputs(self, wavelengths: Wavelengths) -> tuple[Tensor, Tensor]:
        """What the weight generator is told of each band.

        The numbers a checkpoint was trained with override a Sensor's own: by the sensor's name, then by its platform,
        band by band (name or alias). A SAR band has no wavelength; the config's number stands for it.

        Args:
            wavelengths: micrometres, a Sensor or its name, or Bands (which tell no sensor: their own wavelengths); or
                several Sensors, whose bands follow one another in the image.

        Returns:
            (C,) wavelengths in µm, and (C,) long: 0 for a band without polarisation, else 1 + its place in
            POLARISATIONS. Plain numbers carry none.

        Raises:
            ConfigError: no band, an unknown sensor, or a wavelength outside 0.2–20 µm.
        """
        device = self.cls_token.device
        if isinstance(wavelengths, str):
            wavelengths = sensors.get(wavelengths)
        if isinstance(wavelengths, Tensor):
            if wavelengths.ndim != 1:
                raise ConfigError(f"wavelengths have shape {tuple(wavelengths.shape)}; one number a band, (C,)")
            numbers, places = wavelengths.tolist(), [0] * len(wavelengths)
        elif isinstance(wavelengths, Sensor):
            known = _trained(self.config, wavelengths)
            numbers = [self._number(band, known) for band in wavelengths.bands]
            places = [_polarisation(band) for band in wavelengths.bands]
        elif wavelengths and all(isinstance(v, Sensor) for v in wavelengths):
            told = [self.band_inputs(cast(Sensor, v)) for v in wavelengths]
            return torch.cat([n for n, _ in told]), torch.cat([p for _, p in told])
        else:
            numbers = [self._number(v, []) if isinstance(v, Band) else float(cast(float, v)) for v in wavelengths]
            places = [_polarisation(v) if isinstance(v, Band) else 0 for v in wavelengths]
        if not numbers:
            raise ConfigError("no wavelengths given: one number in µm for each band")
        for i, number in enumerate(numbers):
            check_wavelength_um(number, f"band {i}")
        return torch.tensor(numbers, device=device, dtype=torch.float32), torch.tensor(places, device=device)

    def _number(self, band: Band, known: list[TrainedSensor]) -> float:
        names = {n.lower() for n in (band.name, *band.aliases)}
        for trained in known:
            for name, number in zip(trained.bands, trained.wavelength_um, strict=True):
                if name.lower() in names:
                    return number
        return self.config.sar_wavelength if band.wavelength_um is None else band.wavelength_um

    def encode_bands(self, wavelengths: Wavelengths) -> Tensor:
        """What the patch embedding is told: (C, wave_dim) encoded wavelengths V, with each polarisation's vector.

        Where every sensor has an embedding of its own: (C,) long, where the bands stand in its table.

        Raises:
            ConfigError: as `band_inputs`; or no embedding has these bands, or plain wavelengths name no sensor.
        """
        if isinstance(self.patch_embed, SeparatePatchEmbedding):
            sensor = sensors.get(wavelengths) if isinstance(wavelengths, str) else wavelengths
            if not isinstance(sensor, Sensor):
                raise ConfigError(
                    f"this model has one patch embedding a sensor ({', '.join(self.patch_embed.sensors)}): pass a "
                    "Sensor, wavelengths alone do not choose one"
                )
            return torch.tensor(self.patch_embed.rows(sensor), device=self.cls_token.device)
        number, place = self.band_inputs(wavelengths)
        waves = encode_wavelengths(number, self.config.wave_dim)
        if self.config.polarisation_embedding:
            # The row of zeros for optical bands keeps the table in every graph, or DDP would wait for its gradient.
            zero = torch.zeros_like(self.polarisation_embed[:1])
            waves = waves + torch.cat([zero, self.polarisation_embed])[place]
        return waves

    def _embed(self, x: Tensor, wavelengths: Wavelengths, keep: Tensor | None = None) -> tuple[Tensor, Grid, Tensor]:
        grid = patch_grid(x, self.config.patch)
        check_finite(x, self.training)
        waves = self.encode_bands(wavelengths)
        if x.shape[1] != len(waves):
            raise DataError(
                f"image has {x.shape[1]} bands but {len(waves)} wavelengths were given: one a band, in the bands' order"
            )
        tokens, waves = self.patch_embed(x, waves, keep)
        return self.add_positions(tokens, grid, keep), grid, waves

    def forward(self, x: Tensor, wavelengths: Wavelengths) -> Tensor:
        """(B, C, H, W) to (B, classes), or to the pooled (B, D) where there is no head.

        Args:
            x: normalised image.
            wavelengths: micrometres, one a band, or what stands for them; see `forward_features`.
        """
        return self.forward_head(self.forward_features(x, wavelengths))

    def forward_features(self, x: Tensor, wavelengths: Wavelengths) -> Tensor:
        """Tokens after the last block, no final norm.

        Args:
            x: (B, C, H, W) normalised.
            wavelengths: of the C bands; see `band_inputs`.

        Returns:
            (B, 1 + N, D): CLS, then the patches row by row; N = ceil(H / p) · ceil(W / p).

        Raises:
            DataError: another number of bands, an image smaller than a patch, or values that are not finite.
            ConfigError: a wavelength outside 0.2–20 µm.
        """
        return self.run_blocks(self._embed(x, wavelengths)[0])

    def forward_visible(
        self, x: Tensor, wavelengths: Wavelengths, keep: Tensor, blocks: Sequence[int] = (), no_deeper: bool = False
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Like `forward_features`, for the kept patches alone: the others are neither embedded nor attended to.

        Args:
            x: (B, C, H, W) normalised.
            keep: (B, K) patch indices, row by row.
            no_deeper: leave out the blocks behind the last of these; the tokens are then of that one.

        Returns:
            (B, 1 + K, D) tokens after the last block, no norm; the encoded bands V' (C, wave_dim) for a decoder; and
            the raw outputs (B, 1 + K, D) of `blocks`.
        """
        tokens, _, waves = self._embed(x, wavelengths, keep)
        tokens, levels = self.run_blocks_keeping(tokens, blocks, no_deeper)
        return tokens, waves, levels

    def forward_intermediates(
        self,
        x: Tensor,
        wavelengths: Wavelengths,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        return_prefix_tokens: bool = False,
        intermediates_only: bool = True,
    ) -> Intermediates:
        """Raw outputs of chosen blocks, for dense heads.

        Args:
            x: (B, C, H, W) normalised.
            indices: block numbers from 0 (negative from the end), an integer for the last so many, None for all.
            norm: apply the final `norm` to each.
            output_fmt: NCHW maps (B, D, h, w) or NLC tokens (B, N, D).
            return_prefix_tokens: give (patches, CLS (B, 1, D)) pairs.
            intermediates_only: otherwise (what `forward_features` returns, list).

        Returns:
            One entry an index, in the order asked.
        """
        tokens, grid, _ = self._embed(x, wavelengths)
        return self.intermediates(tokens, grid, indices, norm, output_fmt, return_prefix_tokens, intermediates_only)

    @torch.no_grad()
    def specialize(
        self, wavelengths: Wavelengths, image_size: int | Grid | None = None, precision: torch.dtype | None = None
    ) -> "StaticViT":
        """Fixes the generated kernel for one set of bands: an ordinary ViT with the same outputs.

        Args:
            wavelengths: the bands it will be fed, in order.
            image_size: side (or height, width) in pixels to fix the positions at; None keeps the table. Other sizes
                still work.
            precision: keep matrices in it, for inference; torch.bfloat16 gives what autocast gives, without casting
                all weights in every call, in half the memory.

        Returns:
            A StaticViT with its own copy of the weights and no weight generator.

        Raises:
            ConfigError: the model has LoRA adapters.
        """
        require_merged(self)
        weight, bias, _ = self.patch_embed.kernel(self.encode_bands(wavelengths))
        patch = self.config.patch
        bands = weight.shape[0] // patch**2
        state = {k: v for k, v in self.state_dict().items() if not k.startswith(("patch_embed.", "polarisation_embed"))}
        state["patch_embed.proj.weight"] = weight.T.reshape(-1, bands, patch, patch)
        state["patch_embed.proj.bias"] = bias
        grid = self.grid
        if image_size is not None:
            sides = (image_size, image_size) if isinstance(image_size, int) else image_size
            grid = (-(-sides[0] // patch), -(-sides[1] // patch))
            state["pos_embed"] = interpolate_positions(self.pos_embed, self.grid, grid)
        with torch.device("meta"):
            static = StaticViT(self.config, bands, grid)
        static.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
        if precision is not None:
            static.keep_in(precision)
        return static.train(self.training)


class StaticViT(VisionTransformer):
    """An ordinary Vision Transformer for fixed bands, as `DOFA.specialize` makes it; methods without wavelengths.

    Args:
        config: of the model it comes from.
        bands: number of input bands.
    """

    def __init__(self, config: EncoderConfig, bands: int, grid: Grid | None = None) -> None:
        super().__init__(config, grid)
        self.bands = bands
        self.precision: torch.dtype | None = None
        # Holds the kernel under the name ordinary ViTs give it; applied as a matrix product (see `kernels`).
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(bands, config.width, config.patch, config.patch)})

    def keep_in(self, precision: torch.dtype) -> None:
        """Keep the matrices of the embedding and the blocks in this precision; they are not trained any more.

        The rest stays as it is: norms, positions and what is added up along the blocks, as under autocast.
        """
        self.precision = precision
        for linear in [m for m in self.blocks.modules() if isinstance(m, nn.Linear)]:
            linear.to(precision)
        proj = self.patch_embed["proj"]
        proj.weight = nn.Parameter(cast(Tensor, proj.weight).to(precision))
        self.requires_grad_(False)

    def through(self, x: Tensor, wanted: Sequence[int], depth: int) -> tuple[Tensor, list[Tensor]]:
        """See `VisionTransformer.through`."""
        if self.precision is None:
            return super().through(x, wanted, depth)
        with torch.autocast(x.device.type, self.precision):
            return super().through(x, wanted, depth)

    def _embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        grid = patch_grid(x, self.config.patch)
        check_finite(x, self.training)
        if x.shape[1] != self.bands:
            raise DataError(f"image has {x.shape[1]} bands; this model was specialised for {self.bands}")
        proj = self.patch_embed["proj"]
        weight, bias = cast(Tensor, proj.weight).flatten(1).T, cast(Tensor, proj.bias)
        tokens = embed_patches(x, self.config.patch, self.config.patch_offset, weight, bias)
        return self.add_positions(tokens, grid), grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, classes), or to the pooled (B, D) where there is no head."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to tokens (B, 1 + N, D) after the last block, no final norm."""
        return self.run_blocks(self._embed(x)[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        return_prefix_tokens: bool = False,
        intermediates_only: bool = True,
    ) -> Intermediates:
        """Raw outputs of chosen blocks; see `DOFA.forward_intermediates`."""
        tokens, grid = self._embed(x)
        return self.intermediates(tokens, grid, indices, norm, output_fmt, return_prefix_tokens, intermediates_only)


def patch_grid(x: Tensor, patch: int) -> Grid:
    """The image's size in patches, rounded up.

    Args:
        patch: side in pixels.

    Raises:
        DataError: not (B, C, H, W) of floating point numbers, or smaller than a patch.
    """
    if x.ndim != 4:
        raise DataError(f"image has shape {tuple(x.shape)}; (batch, bands, height, width) is expected")
    if not x.is_floating_point():
        raise DataError(f"image holds {x.dtype} numbers: normalise it first (dofa.Scaling.normalise)")
    height, width = x.shape[-2:]
    if height < patch or width < patch:
        raise DataError(f"image of {height} × {width} pixels is smaller than a patch of {patch}: pad or resample it")
    return -(-height // patch), -(-width // patch)


def check_finite(x: Tensor, training: bool) -> None:
    """Raise a DataError if the image holds NaN or infinite values.

    On an accelerator a look at the values waits for the device, so that training leaves it to the loss there.

    Args:
        x: the image, (B, C, H, W).
        training: whether the loss will look at it anyway.
    """
    if torch.compiler.is_compiling() or (training and x.device.type != "cpu"):
        return
    # One pass for the rule; a sum that overflows although every value is finite is looked at again.
    if not bool(torch.isfinite(x.sum())) and (count := int((~torch.isfinite(x)).sum())):
        raise DataError(f"image holds {count} NaN or infinite values: mask them (dofa.Scaling.normalise takes a mask)")


def _trained(config: EncoderConfig, sensor: Sensor) -> list[TrainedSensor]:
    """What the checkpoint knows of a sensor: under its own name first, then of the same platform."""
    own = [config.sensors[sensor.name]] if sensor.name in config.sensors else []
    return own + [t for t in config.sensors.values() if t.platform and t.platform == sensor.platform and t not in own]


def _polarisation(band: Band) -> int:
    return 0 if band.polarisation is None else 1 + POLARISATIONS.index(band.polarisation)
