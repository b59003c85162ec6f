"""Labels as annotation tools export them, brought into the layouts that are trained on."""
