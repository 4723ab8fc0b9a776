"""What is in an APK: its manifest, code, native libraries and signature, read without Android's tools."""
