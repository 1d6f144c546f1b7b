"""The steps of `gradcut.passes.importer`, one file each."""
