"""Data sets out of a project, and existing masks into it.

`exporter` joins what the other modules do: `reading` streams image records out of Label Studio, one module a format
turns a record into files, `folder_sink` and `sinks` put files into a folder or a zip, `data_card` counts and draws.
`importing` is the way back, from `mask_files`.
"""
