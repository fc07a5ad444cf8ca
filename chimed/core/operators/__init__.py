"""What operators may ask and change: a request is checked, refused or begun here, and what is shown is made here."""
