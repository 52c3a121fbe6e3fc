"""Networks of other code bases written out from their formulas, under those code bases' names."""

import re
import zlib
from collections import OrderedDict

import torch
import torchvision
from torch import nn

from frameflex.checkpoint import load_checkpoint, save_checkpoint
from frameflex.convert import convert


class Shift(nn.Module):
    """The shift written from its formula around a module, with the name ``net`` that TSM's code gives it."""

    def __init__(self, net, num_frames, div=8):
        super().__init__()
        self.net, self.num_frames, self.div = net, num_frames, div

    def forward(self, x):
        fold, out = x.shape[1] // self.div, x.clone()
        for n in range(x.shape[0]):
            t = n % self.num_frames
            out[n, :fold] = x[n + 1, :fold] if t + 1 < self.num_frames else 0
            out[n, fold : 2 * fold] = x[n - 1, fold : 2 * fold] if t else 0
        return self.net(out)


class Pool(nn.Module):
    def __init__(self, net, num_frames):
        super().__init__()
        self.net, self.num_frames = net, num_frames

    def forward(self, x):
        clips = x.split(self.num_frames)
        pooled = [clip[max(t - 1, 0) : t + 2].amax(0) for clip in clips for t in range(0, self.num_frames, 2)]
        return self.net(torch.stack(pooled))


class Attention(nn.Module):
    """The non-local block with three-dimensional convolutions, under mit-han-lab's names."""

    def __init__(self, channels):
        super().__init__()
        pool = nn.MaxPool3d((1, 2, 2))
        self.g = nn.Sequential(nn.Conv3d(channels, channels // 2, 1), pool)
        self.W = nn.Sequential(nn.Conv3d(channels // 2, channels, 1), nn.BatchNorm3d(channels))
        self.theta = nn.Conv3d(channels, channels // 2, 1)
        self.phi = nn.Sequential(nn.Conv3d(channels, channels // 2, 1), pool)

    def forward(self, x, mode="embedded_gaussian", scaled=False):  # (1, C, T, H, W)
        theta, phi, g = (m(x)[0].flatten(1) for m in (self.theta, self.phi, self.g))
        products = theta.T @ phi
        if scaled:
            products = products / theta.shape[0] ** 0.5
        weights = products / phi.shape[1] if mode == "dot_product" else products.softmax(1)
        return x + self.W((g @ weights.T).view(1, -1, *x.shape[2:]))


class Attended(nn.Module):
    def __init__(self, block, channels, num_frames, **how):
        super().__init__()
        self.block, self.nl, self.num_frames, self.how = block, Attention(channels), num_frames, how

    def forward(self, x):
        clips = self.block(x).split(self.num_frames)
        return torch.cat([self.nl(c.transpose(0, 1)[None], **self.how)[0].transpose(0, 1) for c in clips])


class Published(nn.Module):
    """mit-han-lab's network: an image network without its last layer, ``new_fc``, a mean over frames."""

    def __init__(self, base_model, num_features, num_classes=7):
        super().__init__()
        self.base_model = base_model
        self.new_fc = nn.Linear(num_features, num_classes)

    def forward(self, clip):  # (B, 3, T, H, W)
        frames = clip.transpose(1, 2).flatten(0, 1)
        return self.new_fc(self.base_model(frames)).unflatten(0, (clip.shape[0], -1)).mean(1)


def randomise(model):
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
        elif value.ndim == 1 and name.endswith("weight"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
        elif value.ndim == 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / value[0].numel()) ** 0.5)
    return model.eval()


def resnet(
    depth, num_frames, *, place="blockres", pool=False, non_local=False, every=1, div=8, draw=True, **how
):
    """torchvision's ResNet with the parts of TSM."""
    net = getattr(torchvision.models, f"resnet{depth}")()
    features, net.fc = net.fc.in_features, nn.Dropout()
    for number in (1, 2, 3, 4):
        stage = net.get_submodule(f"layer{number}")
        left = num_frames // 2 if pool and number > 1 else num_frames
        for i, block in enumerate(stage):
            if place == "block":
                stage[i] = Shift(block, left, div)
            elif place == "blockres" and i % every == 0:
                block.conv1 = Shift(block.conv1, left, div)
        if non_local and number in (2, 3):
            for i in range(0, len(stage), 2):
                channels = (512, 1024)[number - 2]
                stage[i] = Attended(stage[i], channels, num_frames, **how)
    if pool:
        net.layer2 = Pool(net.layer2, num_frames)
    network = Published(net, features)
    return randomise(network) if draw else network


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden = inputs * expand
        layers = (
            []
            if expand == 1
            else [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        )
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)]
        layers += [nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    """The network of arXiv 1801.04381, table 2, with the layers of a block counted in one row."""

    def __init__(self):
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())]
        inputs = 32
        for expand, outputs, repeats, stride in (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ):
            for i in range(repeats):
                layers.append(Inverted(inputs, outputs, stride if i == 0 else 1, expand))
                inputs = outputs
        layers.append(nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()))
        self.features = nn.Sequential(*layers)

    def forward(self, x):
        return self.features(x).mean((2, 3))


def mobilenet(num_frames, div=8, *, draw=True):
    net = MobileNetV2()
    for block in net.features:
        if isinstance(block, Inverted) and block.skip and len(block.conv) == 8:
            block.conv[0] = Shift(block.conv[0], num_frames, div)
    network = Published(net, 1280)
    return randomise(network) if draw else network


def mmaction2_name(key):
    """mmaction2's name of one of mit-han-lab's tensors."""
    if key.startswith("new_fc."):
        return key.replace("new_fc.", "cls_head.fc_cls.")
    key = key.replace("base_model.", "backbone.")
    if "features." in key:
        if stem := re.fullmatch(r"backbone\.features\.(0|18)\.([01])\.(\w+)", key):
            return f"backbone.conv{1 if stem[1] == '0' else 2}.{('conv', 'bn')[int(stem[2])]}.{stem[3]}"
        number, inside = re.fullmatch(r"backbone\.features\.(\d+)\.conv\.(.+)", key).groups()
        index, stage = int(number) - 1, 0
        for repeats in (1, 2, 3, 4, 3, 3, 1):
            if index < repeats:
                break
            index, stage = index - repeats, stage + 1
        shifted = inside.startswith("0.net.")
        layer, tensor = re.fullmatch(r"(\d)\.(?:net\.)?(\w+)", inside).groups()
        # The whole ConvModule is shifted, and so its norm is inside "net" too.
        wrapped = stage in (1, 2, 3, 4, 5) and index > 0 and int(layer) < 3
        assert wrapped or not shifted
        unit = f"{int(layer) // 3}.{'net.' if wrapped else ''}{('conv', 'bn')[int(layer) % 3]}"
        return f"backbone.layer{stage + 1}.{index}.conv.{unit}.{tensor}"
    if ".nl." in key:
        place, inside = key.split(".nl.")
        inside = re.sub(r"^(g|phi)\.0\.", r"\1.0.conv.", inside)
        inside = re.sub(r"^theta\.", "theta.conv.", inside)
        inside = inside.replace("W.0.", "conv_out.conv.").replace("W.1.", "conv_out.bn.")
        return f"{place}.non_local_block.{inside}"
    key = re.sub(r"\bconv(\d)\.", r"conv\1.conv.", key)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
    return key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")


def save(path, model, *, name=lambda key: key, **beside):
    torch.save(
        {"state_dict": {name(key): value for key, value in model.state_dict().items()}, **beside}, path
    )
    return path


def same_logits(path, model, num_frames, *, size=64, **options):
    """Convert, save, load, and compare with the source's own network."""
    conversion = convert(path, **options)
    out = path.with_suffix(".safetensors")
    save_checkpoint(out, conversion.checkpoint)
    loaded = load_checkpoint(out)
    clip = torch.randn(2, 3, num_frames, size, size)
    with torch.no_grad():
        expected = model(clip)
        assert expected.std() > 0.05
        torch.testing.assert_close(loaded.model(clip), expected, rtol=1e-4, atol=1e-4)
    return conversion


def reference_tensor(key, shape):
    """The rule that rebuilds the weights behind the reference logits: a generator for each tensor."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.removeprefix("module.").encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        return torch.rand(shape, generator=generator) * 0.5 + 0.75
    if key.endswith("running_mean"):
        return torch.randn(shape, generator=generator) * 0.1
    if len(shape) == 1 and key.endswith(".weight"):
        return torch.rand(shape, generator=generator) * 0.5 + 0.5
    if len(shape) <= 1:
        return torch.randn(shape, generator=generator) * 0.05
    drawn = torch.randn(shape, generator=generator)
    return drawn * (1.5 / drawn[0].numel()) ** 0.5


def reference_keys(source):
    """The names in that code base's ResNet-50 and their shapes."""
    with torch.device("meta"):
        plain = torchvision.models.resnet50().state_dict()
    plain = {key: tuple(value.shape) for key, value in plain.items() if not key.startswith("fc.")}
    shifted = {re.sub(r"(layer\d\.\d\.conv1\.)", r"\1net.", key): shape for key, shape in plain.items()}
    head = {"new_fc.weight": (174, 2048), "new_fc.bias": (174,)}
    if source == "mit_tsm_resnet50_8f":
        keys = {f"base_model.{key}": shape for key, shape in shifted.items()} | head
    elif source == "mmaction2_tsm_resnet50_8f":
        keys = {f"base_model.{key}": shape for key, shape in shifted.items()} | head
        return {mmaction2_name(key): shape for key, shape in keys.items()}
    else:
        keys = {}
        for key, shape in plain.items():
            norm = re.fullmatch(r"(.*?)(bn\d|downsample\.1)\.(\w+)", key)
            if norm:
                which = norm[2].replace("downsample.1", "downsample_bn")
                keys |= {f"base_model.{norm[1]}{which}_{count}.{norm[3]}": shape for count in (4, 8, 16)}
            else:
                keys[f"base_model.{key.replace('downsample.0', 'downsample_conv')}"] = shape
            if block := re.fullmatch(r"(layer\d\.\d\.)conv1\.weight", key):
                scales = {f"base_model.{block[1]}adaconv_{count}.weight" for count in (4, 8, 16)}
                keys |= dict.fromkeys(scales, (shape[1], 1, 1, 1))
        keys |= head
    return {f"module.{key}": shape for key, shape in keys.items()}


class MobileOneBlock(nn.Module):
    """A block of MobileOne (arXiv 2206.04040, figure 3) under mmpretrain's names: branches that are summed."""

    def __init__(self, inputs, outputs, *, kernel=3, stride=1, groups=1, branches=1, squeeze=False):
        super().__init__()

        def conv_norm(size):
            conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
            return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs)))

        self.branch_norm = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.branch_scale = conv_norm(1) if kernel > 1 else None
        self.branch_conv_list = nn.ModuleList(conv_norm(kernel) for _ in range(branches))
        self.se = None
        if squeeze:
            few = max(8, (outputs // 16 + 4) // 8 * 8)
            self.se = nn.Module()
            self.se.conv1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(outputs, few, 1)))
            self.se.conv2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(few, outputs, 1)))

    def forward(self, x):
        branches = [*self.branch_conv_list, self.branch_scale, self.branch_norm]
        out = sum(branch(x) for branch in branches if branch is not None)
        if self.se is not None:
            out = out * self.se.conv2(self.se.conv1(out.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return out.relu()


MOBILEONES = {  # widths, branches, blocks with squeeze and excitation
    "s0": ((48, 48, 128, 256, 1024), 4, (0, 0, 0, 0)),
    "s4": ((64, 192, 448, 896, 2048), 1, (0, 0, 5, 1)),
}


class MobileOneTSM(nn.Module):
    """mmaction2's MobileOneTSM, table 2 of the paper: the input of every block is shifted, the stem's included."""

    def __init__(self, size, num_frames, num_classes=7, *, place=True):
        super().__init__()
        widths, branches, squeezed = MOBILEONES[size]

        def shifted(block):
            return Shift(block, num_frames) if place else block

        self.backbone = nn.Module()
        self.backbone.stage0 = shifted(MobileOneBlock(3, widths[0], stride=2))
        inputs = widths[0]
        for number, (outputs, repeats) in enumerate(zip(widths[1:], (2, 8, 10, 1), strict=True), start=1):
            blocks = []
            for i in range(repeats):
                how = {"branches": branches, "squeeze": i >= repeats - squeezed[number - 1]}
                stride = 2 if i == 0 else 1
                blocks.append(shifted(MobileOneBlock(inputs, inputs, stride=stride, groups=inputs, **how)))
                blocks.append(shifted(MobileOneBlock(inputs, outputs, kernel=1, **how)))
                inputs = outputs
            self.backbone.add_module(f"stage{number}", nn.Sequential(*blocks))
        self.cls_head = nn.Module()
        self.cls_head.fc_cls = nn.Linear(inputs, num_classes)

    def forward(self, clip):  # (B, 3, T, H, W)
        x = clip.transpose(1, 2).flatten(0, 1)
        for number in range(5):
            x = self.backbone.get_submodule(f"stage{number}")(x)
        return self.cls_head.fc_cls(x.mean((2, 3))).unflatten(0, (clip.shape[0], -1)).mean(1)


def published_tensors(row, *, num_classes=None):
    """The tensors of the file behind published weights: mmaction2's names and shapes, the reference's values."""
    num_classes = num_classes or len(row.class_names)
    with torch.device("meta"):
        if row.backbone == "mobileone_s4":
            model = MobileOneTSM("s4", row.num_frames)
        elif row.backbone == "mobilenetv2_100":
            model = mobilenet(row.num_frames, draw=False)
        else:
            depth = int(row.backbone.removeprefix("resnet"))
            every = 2 if depth == 101 else 1
            attends = row.non_local != "none"
            model = resnet(depth, row.num_frames, non_local=attends, every=every, draw=False)
    name = mmaction2_name if isinstance(model, Published) else str  # MobileOne was written under its names
    state = {name(key): tuple(value.shape) for key, value in model.state_dict().items()}
    if row.non_local == "gaussian":
        state = {k: shape for k, shape in state.items() if ".theta." not in k and ".phi." not in k}
    state = {k: (num_classes, *shape[1:]) if "fc_cls" in k else shape for k, shape in state.items()}
    made = {key: reference_tensor(key, shape) for key, shape in state.items()}
    # Products of random features without a softmax would grow from block to block.
    return {
        key: v * 0.01 if row.non_local == "dot_product" and ".theta." in key else v for key, v in made.items()
    }
