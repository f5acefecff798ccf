"""Why an image is not used: one table of codes and their explanations."""

UNREADABLE = "unreadable"  # the only reason that is not about the content: the next job tries such a file again
UNSUPPORTED_FORMAT = "unsupported_format"

REASONS = {
    "empty": "the file has no bytes",
    "system": "made by an operating system, a file server or a program, such as thumbnails; it is skipped and counted, "
    "and is no row of rejects/ or scores/",
    "hidden": "its name, or a folder's, starts with a dot; rename it to have it read",
    UNREADABLE: "the file system did not give it; the next job tries again",
    "too_many_bytes": "the file is over ingest.max_bytes and was not read",
    "archive_by_another_name": "the content is a zip, tar or gzip archive; rename it to .zip, .tar or .tar.gz to have "
    "it read",
    "not_an_image": "the content is no image, whatever the name says",
    UNSUPPORTED_FORMAT: "an image, a video or an archive of a known format that is not read; the detail names it and "
    "says what to do",
    "corrupt": "the image cannot be decoded to its end",
    "damaged": "its decoder warns that image data is missing or corrupt, so that a part of the picture may be wrong; "
    "ingest.damaged=accept accepts it",
    "too_many_pixels": "the image is over ingest.max_pixels and was not decoded",
    "too_large": "its pixels, strips or texts would take too much memory: more than 4 bytes for each pixel of "
    "ingest.max_pixels, a million strips, or a megabyte of text",
    "too_costly": "its header has too many elements or levels, or decoding it takes more memory or processor seconds "
    "than one image may",
    "preview_only": "all images of the TIFF or DNG file are smaller versions of one that is missing or raw; save the "
    "full image as TIFF, PNG or JPEG",
    "too_small": "a side is under ingest.min_side pixels",
    "blank": "all pixels have the same color",
    "mask": "gray with two values only: a segmentation mask, not a photograph",
    "recognisable": "its DICOM header says that the patient can be recognized in it",
    "burned_in": "its DICOM header says that text which may name the patient is burned into its pixels",
    "dicom_not_photographic": "the DICOM object is neither a dermoscopic nor another photograph",
    "multi_frame": "the DICOM file holds several frames, and nothing says which one shows the lesion; save each as a "
    "file",
    "unsupported_transfer_syntax": "no installed package decodes how the DICOM file packs its pixels",
    "no_label": "neither a table nor the folder gives a label",
    "unknown_label": "the label is in neither diagnoses.csv nor ingest.labels.positive or .negative",
    "indeterminate": "its label does not determine the target; see target and ingest.indeterminate",
    "conflicting_labels": "its labels, or those of images with the same pixels, exclude each other",
    "ambiguous_metadata": "the row with its label fits other images as well; name the folder in the table",
    "contradictory_rows": "two rows of the archive's tables give it another patient, lesion or split",
    "split_overlap": "its group is on the other side of the shipped split; see ingest.split_overlap",
    "duplicate": "another image with the same pixels is kept",
    "quality": "it passes a limit of score.quality, and score.quality.action is abstain",
}
