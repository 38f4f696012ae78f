"""What somebody who can write into a stream, a shared folder or a terminal must not achieve, and what must never be shown."""
