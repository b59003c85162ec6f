"""AdamW, 5 epochs of warm-up, cosine over 300 epochs, 10 more at the end value."""

optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    # timm spares all 1-d parameters and biases: norms, layer scales, sim_alpha, sim_beta.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)

# The rate changes once per epoch, as timm's does, and its cosine counts from epoch 0, under
# the warm-up: 1e-6 in epoch 0, 0.9993e-3 in epoch 5, 1e-6 from epoch 300 on.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=6),
    dict(type='CosineAnnealingLR', eta_min=1e-6, T_max=300, by_epoch=True, begin=0, end=301),
]

train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# lr = 1e-3 per 1024 images: 8 GPUs x 128.
auto_scale_lr = dict(base_batch_size=1024)
