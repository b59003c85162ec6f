"""Settings of your own data beside custom_data and data_root, see docs/custom_data.md."""

classes = None  # found; or a list, or a file with a name per line, or a CSV with a column of names
format = None  # found; or coco yolo voc cvat labelme via csv
ann_file = None  # found; or a COCO file, or [TRAIN, VAL]
img_dir = None  # found; or the folder of the images, or [TRAIN, VAL]
fold = None  # '2/5': hold out the second of five parts
group_by = None  # keep together: the same value in this column, or the same name up to this text
val_fraction = None  # 0.2: the share held out where there is no validation split
arch = None  # another backbone of the arch zoo; neck and head follow
pretrained = None  # a checkpoint to take the backbone from; load_from takes all that fits
