"""Dense transfer: an encoder's maps, UperNet on them for segmentation, Mask R-CNN for detection.

    config.py            the sizes of all of it
    backbone.py          the encoder as a source of maps, plain or in ViTDet's form (windows.py)
    pretrained.py        what a backbone begins with: ADDP's files, or any ViT of timm's layout
    pyramids.py          one map, or four of one stride, to maps of several strides
    segmenter.py         backbone, pyramid, UperNet's heads (upernet.py); its loss and inference
    detector.py          backbone, pyramid, Mask R-CNN's heads (mask_rcnn.py); its losses, its boxes

`upernet.py` alone imports transformers, and `mask_rcnn.py` alone torchvision. Both are extras, and
are imported when such a network is built.
"""
