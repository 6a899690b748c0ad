from .augmentation.augmented import Augmented as Augmented
from .augmentation.joint_transform import JointTransform as JointTransform
from .images import ImageFolder as ImageFolder
from .images import load as load
from .images import load_images as load_images
from .images import to_images as to_images
from .labelled.celeba import CelebA as CelebA
from .labelled.cityscapes import Cityscapes as Cityscapes
from .labelled.described_table import LabelledTable as LabelledTable
from .labelled.label_forms import LabelForm as LabelForm
from .labelled.labelled_images import LabelledImages as LabelledImages
from .labelled.nyud import NYUD as NYUD
from .labelled.pascal_context import PascalContext as PascalContext
from .labelled.taskonomy import Taskonomy as Taskonomy
from .procedural.layouts import LAYOUTS as LAYOUTS
from .procedural.rendering import FAR as FAR
from .procedural.scene_dataset import SEGMENTS as SEGMENTS
from .procedural.scene_dataset import Scenes as Scenes
from .procedural.scene_dataset import scenes as scenes
from .samples import Batch as Batch
from .samples import Samples as Samples
from .samples import read_samples as read_samples
from .sample_splits import split_by_group as split_by_group
from .sample_splits import split_by_time as split_by_time

__all__ = [
    "Augmented",
    "Batch",
    "CelebA",
    "Cityscapes",
    "FAR",
    "ImageFolder",
    "JointTransform",
    "LAYOUTS",
    "LabelForm",
    "LabelledImages",
    "LabelledTable",
    "NYUD",
    "PascalContext",
    "SEGMENTS",
    "Samples",
    "Scenes",
    "Taskonomy",
    "load",
    "load_images",
    "read_samples",
    "scenes",
    "split_by_group",
    "split_by_time",
    "to_images",
]
