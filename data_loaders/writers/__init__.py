"""Writers: recordings to files and objects of other packages."""
