"""ImageNet-1k at 224 x 224 with the augmentation of the original (timm's).

What mmpretrain's transforms do otherwise than timm's, each by the nearest setting:

- Random interpolation: timm draws bilinear or bicubic for each crop; so does
  ``RandomChoice`` here.
- RandAugment ``rand-m9-mstd0.5-inc1``: the same 15 operations, ranges, probability 0.5,
  noise and fill. timm draws bilinear or bicubic for each rotation, shear and translation
  too; ``hparams`` hold one value, bicubic. Operations run on BGR images through OpenCV
  where timm has RGB and Pillow.
- Random erasing, ``pixel`` mode: timm writes noise of N(0, 1) into the normalised image;
  here it is N(mean, std) into the image of bytes, so cut to 0-255, and one attempt at a
  rectangle, clipped to the image, where timm makes ten that must fit.
- timm erases after mixing two images, on the normalised batch; here each image is erased before.
- timm drops the last, incomplete batch of an epoch (1251 steps); here the sampler fills it (1252).
- Images are decoded by OpenCV (which turns them as EXIF says) where timm has Pillow.
"""

dataset_type = 'ImageNet'
data_root = 'data/imagenet'
data_preprocessor = dict(
    num_classes=1000,
    # of RGB
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
# Transforms see BGR.
bgr_mean = data_preprocessor['mean'][::-1]
bgr_std = data_preprocessor['std'][::-1]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation=how)]
            for how in ('bilinear', 'bicubic')
        ],
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in bgr_mean], interpolation='bicubic'),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Crop ratio 0.9: 224 / 0.9, rounded down.
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=5,
    dataset=dict(type=dataset_type, data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=5,
    dataset=dict(type=dataset_type, data_root=data_root, split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
