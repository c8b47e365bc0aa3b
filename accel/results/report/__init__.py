"""Studies as one page of HTML that needs no server, no network and no account: tables, fronts, pictures, a legend."""
